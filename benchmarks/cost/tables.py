"""Makes tables and plots of ``cost.json`` alone, once more by ``python -m benchmarks.cost_tables``."""

from __future__ import annotations

import json
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

FROZEN = "frozen image model, linear head"
PLAIN = "AIM"
LITERAL = "AIM by the letter"
SETTING = {setting: PLAIN if setting == "nothing" else f'{PLAIN}, recompute="{setting}"' for setting in SETTINGS}
OFFICIAL = {"forward_gmac": 202.1, "backward_gmac": 226.8, "saved_mb": 1313}  # one clip, 8 frames, B/16
MB, MIB = 1e6, 2**20


def publish(folder: Path) -> None:
    """Write the plots beside ``cost.json``, and the tables into this folder's README, or beside it elsewhere."""
    found = json.loads((folder / "cost.json").read_text())
    draw_growth(found["growth"], folder / "cost_growth.svg")
    draw_pareto(by_row(found), folder / "cost_pareto.svg")
    tables.publish("cost", folder, page(found), front_table(found))


def page(found: Facts) -> str:
    """Return all tables as Markdown."""
    plan, versions = found["plan"], found["versions"]
    where = (
        f"{plan['backbone']}, {plan['batch']} clip of {plan['frames']} frames of {plan['size']} px, {plan['dtype']}, "
        f"{found['device']}, {found['threads']} threads, torch {versions['torch']}, at {found['commit']}"
    )
    parts = [f"`{found['command']}`: {where}.", main_table(found), "**What is computed again**", pareto_table(found)]
    if plan["device"] == "cpu":
        parts.append(
            "On a GPU, in bfloat16 with 32 clips: times and the allocator's peak are not measured, for want of one "
            "(`python -m benchmarks.cost --device cuda --dtype bfloat16 --batch 32`)."
        )
    if plan["backbone"] == Plan().backbone:
        parts += ["**Goals**", goals_table(found)]
    parts += ["**How it grows**", growth_table(found["growth"])]
    return "\n\n".join(parts)


def by_row(found: Facts) -> dict[str, Facts]:
    """Return the rows by their names."""
    return {row["row"]: row for row in found["rows"]}


def main_table(found: Facts) -> str:
    """Return AIM beside its rivals."""
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
    peak = "peak on the GPU, MB" if found["plan"]["device"] == "cuda" else "peak of tensors, MB (GPU: not measured)"
    names = ["", "trained", "file, MiB", "forward, GMAC", "backward, GMAC", "kept for backward, MB", peak]
    return headed([*names, "step, over AIM by the letter", "inference, over frozen"], lines)


COUNTS = (("forward_gmac", 1), ("backward_gmac", 1), ("saved_mb", 0), ("peak_mb", 0))


def pareto_table(found: Facts) -> str:
    """Return the settings of ``recompute``: memory against arithmetic and time."""
    rows = by_row(found)
    plain = rows[PLAIN]
    lines = [
        line(
            f'`recompute="{setting}"`',
            SETTINGS[setting],
            f"{rows[name]['saved_mb']:.0f}",
            f"{rows[name]['saved_mb'] / plain['saved_mb']:.2f}",
            f"{rows[name]['peak_mb']:.0f}",
            f"{extra(rows[name], plain):+.1%}",
            f"{rows[name]['step_ratio'] / plain['step_ratio']:.2f}",
        )
        for setting, name in SETTING.items()
    ]
    names = [
        "",
        "what it does",
        "kept, MB",
        "part of the default",
        "peak, MB",
        "arithmetic of a step",
        "time of a step",
    ]
    return headed(names, lines)


def front_table(found: Facts) -> str:
    """Return for the front page what a user chooses from."""
    rows, plan = by_row(found), found["plan"]
    chosen = {LITERAL: LITERAL, **{f'`recompute="{setting}"`': name for setting, name in SETTING.items()}}
    lines = [
        line(
            label,
            f"{rows[name]['saved_mb']:,.0f} MB",
            f"{rows[name]['forward_gmac'] + rows[name]['backward_gmac']:.0f} GMAC",
            f"{rows[name]['step_ratio']:.2f}",
        )
        for label, name in chosen.items()
    ]
    names = [
        f"{plan['backbone']}, {plan['frames']} frames",
        "kept for backward",
        "forward and backward",
        "time of a step, CPU",
    ]
    return headed(names, lines)


def extra(row: Facts, plain: Facts) -> float:
    """Return by which part a step takes more arithmetic."""
    together = [facts["forward_gmac"] + facts["backward_gmac"] for facts in (row, plain)]
    return together[0] / together[1] - 1


def goals(found: Facts) -> list[tuple[str, str, str, bool]]:
    """Return what was to be reached with CLIP ViT-B/16, the goal, what was measured, and whether that is enough."""
    rows, swap = by_row(found), found["swapping"]
    plain, compiled = rows[PLAIN], rows[f"{PLAIN}, compiled"]
    pointwise, mlp, block = (rows[SETTING[name]] for name in ("pointwise", "mlp", "block"))
    arithmetic = plain["forward_gmac"] / rows[FROZEN]["forward_gmac"]
    overhead = plain["inference_ratio"] / arithmetic
    repeated = extra(pointwise, plain)
    half = swap["file_bytes"]["float16"] / MIB
    full = swap["file_bytes"]["as trained"] / MIB
    limits = [
        ("forward, GMAC", 202.1, plain["forward_gmac"], ".1f"),
        ("backward, GMAC", 226.8, plain["backward_gmac"], ".1f"),
        ("kept for backward by default, MB", 1250, plain["saved_mb"], ".0f"),
        ("kept, pointwise operations computed again, MB", 1050, pointwise["saved_mb"], ".1f"),
        ("products repeated for that, part of a step", 0, repeated, ".3f"),
        ('kept with "mlp", MB', 720, mlp["saved_mb"], ".0f"),
        ("arithmetic for that, part of a step", 0.12, extra(mlp, plain), ".3f"),
        ('kept with "block", MB', 130, block["saved_mb"], ".0f"),
        ("time of a step over AIM by the letter", 1.0, plain["step_ratio"], ".3f"),
        ("the same, ours compiled, that not", 0.85, compiled["step_ratio"], ".3f"),
        ("inference over the frozen model's, over the ratio of arithmetic", 1.08, overhead, ".3f"),
        ("graph breaks", 0, swap["graph_breaks"], "d"),
        ("compilations for a hot swap", 0, swap["recompiled_by_hotswap"], "d"),
        ("switching two loaded adapters, ms", 5, swap["set_adapter_ms"], ".1f"),
        ("hot swap from disk, over reading the bytes", 3, swap["hotswap_over_reading"], ".1f"),
        ("file, MiB", 41.85, full, ".2f"),
        ("file in half precision, MiB", 20.95, half, ".2f"),
    ]
    return [(name, f"<= {goal}", f"{value:{digits}}", value <= goal) for name, goal, value, digits in limits]


def goals_table(found: Facts) -> str:
    """Return the goals and what was measured."""
    lines = [line(name, goal, value, "yes" if good else "**no**") for name, goal, value, good in goals(found)]
    return headed(["", "goal", "measured", "reached"], lines)


def growth_table(growth: Facts) -> str:
    """Return the exponents."""
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
    ("saved_mb", "memory kept for backward"),
)


def draw_growth(growth: Facts, path: Path) -> None:
    """Draw arithmetic and memory over each quantity that is varied."""
    plt.rcParams["svg.hashsalt"] = "cost"  # the same file from the same numbers
    figure, axes = plt.subplots(1, len(growth), figsize=(4 * len(growth), 3.5), layout="constrained")
    for axis, (varied, content) in zip(axes, growth.items(), strict=True):
        points = content["points"]
        along = "tokens" if "tokens" in points[0] else varied
        lines = [*GROWS, *(EXTRA_OF_ADAPTERS if varied == "adapters" else [])]
        for name, label in lines:
            power = f", power {content['exponents'][name]:.2f}"
            axis.plot([p[along] for p in points], [p[name] for p in points], "o-", label=label + power)
        axis.set(xscale="log", yscale="log", xlabel=along)
        axis.set_xticks([p[along] for p in points], [str(p[along]) for p in points])
        axis.minorticks_off()
        axis.legend(fontsize=6)
    axes[0].set_ylabel("GMAC, MB")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


EXTRA_OF_ADAPTERS = [("adapters_mb", "adapters in memory"), ("set_adapter_ms", "switching, ms")]


def draw_pareto(rows: dict[str, Facts], path: Path) -> None:
    """Draw what is kept for backward against the arithmetic of a step, with the settings of AIM joined."""
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
    axis.set(xlabel="forward and backward, GMAC", ylabel="kept for backward, MB", ylim=(0, None))
    axis.legend(fontsize=6)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    publish(RESULTS)
