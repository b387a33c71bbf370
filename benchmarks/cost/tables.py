"""Makes the tables and plots of ``cost.json``; run ``python -m benchmarks.cost.tables`` to make them again."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.cost.plan import Plan
from benchmarks.reporting import tables
from benchmarks.reporting.record import RESULTS
from benchmarks.reporting.tables import headed, line
from peft_aim.recompute import SETTINGS

matplotlib.use("Agg")

import matplotlib.pyplot as plt

Facts = dict[str, Any]

FROZEN = "frozen backbone, linear head"
PLAIN = "AIM"
REFERENCE = "AIM, reference implementation"
SETTING = {setting: PLAIN if setting == "nothing" else f'{PLAIN}, recompute="{setting}"' for setting in SETTINGS}
MIB = 2**20
MOST_IMAGES = 2.2  # goal for the arithmetic of attaching an adapter
COUNTS = (("forward_gmac", 1), ("backward_gmac", 1), ("saved_mb", 0), ("peak_mb", 0))


def publish(folder: Path) -> None:
    """Write the plots beside ``cost.json``, and the tables into the READMEs, or beside it in another folder."""
    found = json.loads((folder / "cost.json").read_text())
    draw_growth(found["growth"], folder / "cost_growth.svg")
    draw_pareto(by_row(found["rows"]), folder / "cost_pareto.svg")
    tables.publish("cost", folder, page(found))


def publish_gpu(folder: Path) -> None:
    """Write the table of ``cost_gpu.json`` into the README of the benchmarks, or beside it in another folder."""
    tables.publish("cost_gpu", folder, gpu_page(json.loads((folder / "cost_gpu.json").read_text())))


def publish_over_time(folder: Path) -> None:
    """Write the table of ``cost_over_time.json`` into the README of the benchmarks, or beside it elsewhere."""
    found = json.loads((folder / "cost_over_time.json").read_text())
    tables.publish("cost_over_time", folder, over_time_page(found))


def publish_quantized(folder: Path) -> None:
    """Write the table of ``cost_quantized.json`` into the README of the benchmarks, or beside it elsewhere."""
    found = json.loads((folder / "cost_quantized.json").read_text())
    tables.publish("cost_quantized", folder, quantized_page(found))


def publish_mixed(folder: Path) -> None:
    """Write the table of ``cost_mixed.json`` into the README of the benchmarks, or beside it in another folder."""
    tables.publish("cost_mixed", folder, mixed_page(json.loads((folder / "cost_mixed.json").read_text())))


def publish_attach(folder: Path) -> None:
    """Write the table of ``cost_attach.json`` into the README of the benchmarks, or beside it in another folder."""
    tables.publish("cost_attach", folder, attach_page(json.loads((folder / "cost_attach.json").read_text())))


def quantized_page(found: Facts) -> str:
    """Return the memory of a backbone in several precisions."""
    lines = [
        line(
            row["row"],
            f"{row['backbone_bytes'] / 1e6:.0f}",
            f"{row['backbone_bytes'] / found['rows'][0]['backbone_bytes']:.2f}",
            f"{row['parameters'] * 4 / 1e6:.0f}",
            f"{row['drift']:.1%}" if row["drift"] else "",
        )
        for row in found["rows"]
    ]
    names = ["backbone", "frozen weights, MB", "relative to float32", "adapters and head, MB", "features change by"]
    used = ", ".join(f"{name} {version}" for name, version in found["quantizers"].items())
    return f"{described(found).removesuffix('.')}, {used}.\n\n{headed(names, lines)}"


def mixed_page(found: Facts) -> str:
    """Return the cost of a batch by its number of adapters."""
    lines = [
        line(
            str(row["adapters"]),
            f"{row['forward_gmac']:.1f}",
            f"{row['arithmetic_ratio']:.3f}",
            f"{row['largest_difference']:.0e}" if row["largest_difference"] else "0",
        )
        for row in found["rows"]
    ]
    names = ["adapters", "forward, GMAC", "relative to one adapter", "largest difference from one call each"]
    return f"{described(found)}\n\n{headed(names, lines)}"


def over_time_page(found: Facts) -> str:
    """Return the counts of attention and convolutions over time."""
    lines = [
        line(row["row"], f"{row['parameters']:,}", *(f"{row[key]:.{digits}f}" for key, digits in COUNTS))
        for row in found["rows"]
    ]
    names = ["", "trainable parameters", "forward, GMAC", "backward, GMAC", "saved activations, MB"]
    return f"{described(found)}\n\n{headed([*names, 'peak of live tensors, MB'], lines)}"


def page(found: Facts) -> str:
    """Return all tables as Markdown."""
    plan, parts = found["plan"], [described(found), main_table(found)]
    parts += ["**Activation checkpointing**", recompute_table(found)]
    if plan["backbone"] == Plan().backbone:
        parts += ["**Goals**", goals_table(found)]
    parts += ["**Growth**", growth_table(found["growth"])]
    return "\n\n".join(parts)


def described(found: Facts) -> str:
    """Return what was measured, on what."""
    plan, threads = found["plan"], found["threads"]
    clips = f"{plan['batch']} clip{'s' * (plan['batch'] > 1)} of {plan['frames']} frames of {plan['size']} px"
    return (
        f"`{found['command']}`: {plan['backbone']}, {clips}, {plan['dtype']}, {found['device']}, "
        f"{threads} thread{'s' * (threads > 1)}, torch {found['versions']['torch']}, commit {found['commit']}."
    )


def by_row(rows: list[Facts]) -> dict[str, Facts]:
    """Return rows by their names."""
    return {row["row"]: row for row in rows}


def main_table(found: Facts) -> str:
    """Return the table of AIM and the methods it is compared with."""
    lines = [
        line(
            row["row"],
            *(f"{row['parameters']:,}", f"{row['file_bytes'] / MIB:.1f}") if "parameters" in row else ("", ""),
            *(f"{row[key]:.{digits}f}" if key in row else "" for key, digits in COUNTS),
            f"{row['step_ratio']:.2f}",
            f"{row['inference_ratio']:.2f}",
        )
        for row in found["rows"]
    ]
    names = ["", "trainable parameters", "file, MiB", "forward, GMAC", "backward, GMAC", "saved activations, MB"]
    return headed([*names, "peak of live tensors, MB", "step time / reference", "inference time / frozen"], lines)


def gpu_page(found: Facts) -> str:
    """Return the table of what was measured on a GPU."""
    batch, lines = found["plan"]["batch"], []
    for row in found["rows"]:
        speeds = [batch / statistics.median(row[key]) for key in ("step_seconds", "inference_seconds")]
        shown = (f"{row['step_ratio']:.2f}", f"{speeds[0]:.0f}", f"{row['inference_ratio']:.2f}", f"{speeds[1]:.0f}")
        lines.append(line(row["row"], f"{row['peak_mb'] / 1e3:.1f}", *shown))
    names = ["", "peak memory, GB", "step time / reference", "training, clips/s", "inference time / frozen"]
    return f"{described(found)}\n\n{headed([*names, 'inference, clips/s'], lines)}"


def recompute_table(found: Facts) -> str:
    """Return the table of ``recompute``: memory, arithmetic and time."""
    rows, gelu = by_row(found["rows"]), by_row(found["gelu"])
    plain = rows[PLAIN]
    lines = [
        line(
            f'`recompute="{setting}"`',
            SETTINGS[setting],
            f"{rows[name]['saved_mb']:,.0f}",
            *([f"{gelu[name]['saved_mb']:,.0f}"] if gelu else []),
            f"{rows[name]['saved_mb'] / plain['saved_mb']:.2f}",
            f"{rows[name]['peak_mb']:,.0f}",
            f"{extra(rows[name], plain):+.1%}",
            f"{rows[name]['step_ratio'] / plain['step_ratio']:.2f}",
        )
        for setting, name in SETTING.items()
    ]
    with_gelu = ["the same with GELU, MB"] if gelu else []
    names = ["", "", "saved activations, MB", *with_gelu, "relative to the default"]
    return headed([*names, "peak, MB", "arithmetic of a step", "time of a step"], lines)


def attach_page(found: Facts) -> str:
    """Return what attaching an adapter costs."""
    lines = [
        line(
            f"{row['model']} (`{row['name']}`)",
            f"{row['image_gmac']:.1f}",
            f"{row['attach_gmac']:.1f}",
            f"**{row['ratio']:.2f}**",
            f"{row['inspection_mb']:.0f}",
            f"{row['two_images_mb']:.0f}",
            f"{row['largest_block_mb']:.0f}",
            "{}, {}, {}".format(*row["runs"]),
        )
        for row in found["rows"]
    ]
    names = ["", "one image, GMAC", "`get_peft_model`, GMAC", "ratio", "peak of live tensors, MB"]
    names += ["two images, MB", "largest block, MB", "runs of the model: first adapter, second, loaded later"]
    most = max(row["ratio"] for row in found["rows"])
    where = f"`{found['command']}`: {found['device']}, torch {found['versions']['torch']}, commit {found['commit']}."
    goal = f"Goal: attaching takes at most {MOST_IMAGES} images; measured: at most {most:.2f}."
    return f"{where} {goal}\n\n{headed(names, lines)}"


def extra(row: Facts, plain: Facts) -> float:
    """Return the additional arithmetic of a step, as a fraction."""
    together = [facts["forward_gmac"] + facts["backward_gmac"] for facts in (row, plain)]
    return together[0] / together[1] - 1


def goals(found: Facts, rows: dict[str, Facts]) -> dict[str, tuple[float, float, str]]:
    """Return the goals for CLIP ViT-B/16: by name the limit, the measured value and its format.

    Args:
        found: The record.
        rows: The rows to take counts from: those with QuickGELU, or those with GELU.
    """
    timed, swap = by_row(found["rows"]), found["swapping"]
    plain, pointwise, mlp, block = (rows[SETTING[name]] for name in ("nothing", "pointwise", "mlp", "block"))
    arithmetic = timed[PLAIN]["forward_gmac"] / timed[FROZEN]["forward_gmac"]
    return {
        "forward, GMAC": (202.1, plain["forward_gmac"], ".1f"),
        "backward, GMAC": (226.8, plain["backward_gmac"], ".1f"),
        "saved activations by default, MB": (1250, plain["saved_mb"], ".0f"),
        'saved activations with "pointwise", MB': (1050, pointwise["saved_mb"], ".1f"),
        'additional arithmetic with "pointwise"': (0, extra(pointwise, plain), ".3f"),
        'saved activations with "mlp", MB': (720, mlp["saved_mb"], ".0f"),
        'additional arithmetic with "mlp"': (0.12, extra(mlp, plain), ".3f"),
        'saved activations with "block", MB': (130, block["saved_mb"], ".0f"),
        "step time / reference": (1.0, timed[PLAIN]["step_ratio"], ".3f"),
        "step time, compiled / reference, not compiled": (0.85, timed[f"{PLAIN}, compiled"]["step_ratio"], ".3f"),
        "inference time / frozen, relative to the arithmetic": (
            1.08,
            timed[PLAIN]["inference_ratio"] / arithmetic,
            ".3f",
        ),
        "graph breaks": (0, swap["graph_breaks"], "d"),
        "recompilations for a hot swap": (0, swap["recompiled_by_hotswap"], "d"),
        "switching between two loaded adapters, ms": (5, swap["set_adapter_ms"], ".1f"),
        "hot swap from disk / reading the bytes": (3, swap["hotswap_over_reading"], ".1f"),
        "file, MiB": (41.85, swap["file_bytes"]["as trained"] / MIB, ".2f"),
        "file in half precision, MiB": (20.95, swap["file_bytes"]["float16"] / MIB, ".2f"),
    }


def goals_table(found: Facts) -> str:
    """Return the table of goals; counts depend on the activation, all other values are those with QuickGELU."""
    quick = goals(found, by_row(found["rows"]))
    gelu = goals(found, by_row(found["gelu"])) if found["gelu"] else quick
    lines = []
    for name, (limit, value, digits) in quick.items():
        both = [f"{value:{digits}}", f"{gelu[name][1]:{digits}}"]
        reached = ["yes" if measured <= limit else "**no**" for measured in (value, gelu[name][1])]
        lines.append(line(name, f"<= {limit}", *both, " / ".join(dict.fromkeys(reached))))
    return headed(["", "goal", "QuickGELU", "GELU", "reached"], lines)


def growth_table(growth: Facts) -> str:
    """Return the table of exponents."""
    lines = []
    for varied, content in growth.items():
        points, found = content["points"], content["exponents"]
        along = "tokens per frame" if "tokens" in points[0] else varied
        values = ", ".join(str(point.get("tokens", point[varied])) for point in points)
        shown = (found[name] for name, _ in GROWS)
        lines.append(line(along, values, *(f"{value:.2f}" for value in shown)))
    return headed(["", "values", *(f"exponent of {name}" for _, name in GROWS)], lines)


GROWS = (
    ("forward_gmac", "forward arithmetic"),
    ("backward_gmac", "backward arithmetic"),
    ("saved_mb", "saved activations"),
)


def draw_growth(growth: Facts, path: Path) -> None:
    """Plot arithmetic and memory over each quantity that is varied."""
    plt.rcParams["svg.hashsalt"] = "cost"  # the same file from the same numbers
    figure, axes = plt.subplots(1, len(growth), figsize=(4 * len(growth), 3.5), layout="constrained")
    for axis, (varied, content) in zip(axes, growth.items(), strict=True):
        points = content["points"]
        along = "tokens" if "tokens" in points[0] else varied
        lines = [*GROWS, *(EXTRA_OF_ADAPTERS if varied == "adapters" else [])]
        for name, label in lines:
            power = f", exponent {content['exponents'][name]:.2f}"
            axis.plot([p[along] for p in points], [p[name] for p in points], "o-", label=label + power)
        axis.set(xscale="log", yscale="log", xlabel=along)
        axis.set_xticks([p[along] for p in points], [str(p[along]) for p in points])
        axis.minorticks_off()
        axis.legend(fontsize=6)
    axes[0].set_ylabel("GMAC, MB")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


EXTRA_OF_ADAPTERS = [("adapters_mb", "adapter weights"), ("set_adapter_ms", "switching, ms")]


def draw_pareto(rows: dict[str, Facts], path: Path) -> None:
    """Plot saved activations over the arithmetic of a step, with the settings of AIM connected."""
    plt.rcParams["svg.hashsalt"] = "cost"
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    points = {
        name: (row["forward_gmac"] + row["backward_gmac"], row["saved_mb"])
        for name, row in rows.items()
        if "saved_mb" in row
    }
    axis.plot(*zip(*(points[name] for name in SETTING.values()), strict=True), "o-", label="AIM, by recompute")
    for setting, name in SETTING.items():
        axis.annotate(setting, points[name], textcoords="offset points", xytext=(4, 4), fontsize=7)
    for name, point in points.items():
        if name not in SETTING.values():
            axis.plot(*point, "s", label=name)
    axis.set(xlabel="forward and backward, GMAC", ylabel="saved activations, MB", ylim=(0, None))
    axis.legend(fontsize=6)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    publish(RESULTS)
    publish_gpu(RESULTS)
    publish_over_time(RESULTS)
    publish_attach(RESULTS)
    publish_quantized(RESULTS)
    publish_mixed(RESULTS)
