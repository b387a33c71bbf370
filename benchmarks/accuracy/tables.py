"""Tables and a plot made from ``accuracy.json`` alone; ``python -m benchmarks.accuracy.tables`` makes them again."""

from __future__ import annotations

import json
import math
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.accuracy.ladder import AIM, BLIND, DATA, DIVIDED, MAIN, TEMPORAL, Row
from benchmarks.reporting import tables
from benchmarks.reporting.record import RESULTS
from benchmarks.reporting.tables import headed, line

matplotlib.use("Agg")

import matplotlib.pyplot as plt

Facts = dict[str, Any]
PAPER_DATA = {0.01: (55.4, 46.5), 0.1: (73.0, 69.8), 0.5: (81.8, 79.1), 1.0: (83.9, 82.0)}  # AIM, TimeSformer
SCORES = ("trainable parameters", "top-1", "within-pair accuracy")


def summary(row: Row, chosen: list[Facts]) -> Facts:
    """Summarize a row over the seeds.

    Args:
        row: The row.
        chosen: For each seed, the trial whose learning rate scores best on the validation clips.
    """
    edges = {min(row.rates), max(row.rates)} if row.rates else {}
    rates = [trial["settings"]["lr"] for trial in chosen]
    return {
        "row": row.name,
        "fraction": row.fraction,
        "longer": row.longer,
        "parameters": chosen[0]["parameters"],
        "clips": chosen[0]["clips"],
        "paper": row.paper,
        "grid": row.rates,
        "rates": rates,
        "at the edge of the grid": sum(rate in edges for rate in rates),
        "top1": over_seeds([trial["test"]["top1"] for trial in chosen]),
        "within_pair": over_seeds([trial["test"]["within_pair"] for trial in chosen]),
        "rounded": [trial["rounded"] for trial in chosen if "rounded" in trial],
    }


def over_seeds(values: list[float]) -> Facts:
    """Return the mean, the standard deviation and the values themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": deviation, "values": [round(value, 4) for value in values]}


def publish(folder: Path, name: str = "accuracy") -> None:
    """Write the tables of a record into the README, or beside it in another folder, and the plot next to it.

    Args:
        folder: Folder of the record.
        name: "accuracy", which comes with a plot, or "accuracy_over_time".
    """
    found = json.loads((folder / f"{name}.json").read_text())
    if name == "accuracy_over_time":
        tables.publish(name, folder, over_time_page(found))
        return
    draw(found["tables"], folder / "accuracy.svg")
    tables.publish(name, folder, page(found))


def over_time_page(record: Facts) -> str:
    """Return the table of attention and convolutions over time."""
    return headed(["", *SCORES], [line(*cells(row)) for row in record["tables"]["over time"]])


def page(record: Facts) -> str:
    """Return all tables in Markdown."""
    found = record["tables"]
    parts = [main_table(found["main"]), expectations(found), "**Fraction of the training clips**", data_table(found)]
    parts += ["**Four times as many training steps**", longer_table(found)]
    parts += ["**Bottleneck width, and position of the adapters**", ablations(found), rounding(of(found, AIM))]
    return "\n\n".join(parts)


def main_table(rows: list[Facts]) -> str:
    """Return the table of the ladder and the other methods."""
    return headed(["", *SCORES, "top-1 in the paper, SSv2"], list(map(of_row, rows)))


def of_row(row: Facts) -> str:
    """Return the table line of a row."""
    return line(*cells(row), of_paper(row["paper"]))


def cells(row: Facts) -> list[str]:
    """Return the name of a row, its parameters and its scores."""
    return [row["row"], f"{row['parameters']:,}", *(spread(row[key]) for key in ("top1", "within_pair"))]


def data_table(found: dict[str, list[Facts]]) -> str:
    """Return the table of AIM and full fine-tuning on fractions of the training clips."""
    lines = []
    for fraction in sorted({row.fraction for row in (*DATA, AIM)}):
        rows = [of(found, row, fraction) for row in (AIM, DIVIDED)]
        aim, full = (row["top1"] for row in rows)
        papers = "{}% / {}%".format(*PAPER_DATA[fraction])
        difference = f"{100 * (aim['mean'] - full['mean']):+.1f}"
        lines.append(line(f"{fraction:.0%}", rows[0]["clips"], spread(aim), spread(full), difference, papers))
    names = ["fraction", "clips", "AIM, top-1", f"{DIVIDED.name}, top-1", "difference in points"]
    return headed([*names, "the same two in the paper, K400"], lines)


def longer_table(found: dict[str, list[Facts]]) -> str:
    """Return the table of the same two rows with more steps, at the learning rates chosen for fewer steps."""
    lines = [
        line(row.name, spread(of(found, row)["top1"]), *(spread(longer[key]) for key in ("top1", "within_pair")))
        for row, longer in zip((AIM, DIVIDED), found["longer"], strict=True)
    ]
    return headed(["", "top-1", "top-1, 4x steps", "within-pair accuracy, 4x steps"], lines)


def ablations(found: dict[str, list[Facts]]) -> str:
    """Return the table of AIM with other bottleneck widths, and in some of the blocks."""
    whole = {**of(found, AIM), "row": "AIM: bottleneck ratio 0.25, all blocks", "paper": 83.9}
    lines = [of_row(row) for row in (whole, *found["ratio"], *found["position"])]
    return headed(["", *SCORES, "top-1 in the paper, K400"], lines)


def expectations(found: dict[str, list[Facts]]) -> str:
    """Return the expectations set before anything was run, each with its result."""
    top1 = {row.name: of(found, row)["top1"]["mean"] for row in MAIN}
    ladder = [BLIND["frozen"], BLIND["spatial"], TEMPORAL, AIM]
    steps = [f"{100 * top1[row.name]:.1f}" for row in ladder]
    values = [of(found, row)["top1"]["values"] for row in (TEMPORAL, AIM)]
    last = over_seeds([after - before for before, after in zip(*values, strict=True)])
    pairs = [value for row in BLIND.values() for value in of(found, row)["within_pair"]["values"]]
    longer = [row["top1"]["mean"] for row in found["longer"]]
    ahead = [100 * (aim - full) for aim, full in ((top1[AIM.name], top1[DIVIDED.name]), longer)]
    part = of(found, AIM)["parameters"] / of(found, DIVIDED)["parameters"]
    tenth = [100 * of(found, row, 0.1)["top1"]["mean"] for row in (AIM, DIVIDED)]
    return "\n".join(
        [
            "Expectations from the paper, and results:",
            "",
            verdict(
                f"Each adapter improves mean top-1: {', '.join(steps)}%.",
                all(top1[low.name] < top1[high.name] for low, high in pairwise(ladder)),
                "" if is_significant(last) else f", but the last step, {points(last)} points, is not significant",
            ),
            verdict(
                f"Without temporal attention, within-pair accuracy is at chance: {100 * min(pairs):.1f}% to "
                f"{100 * max(pairs):.1f}% over all such rows and seeds (guaranteed by how the test clips are made).",
                max(abs(value - 0.5) for value in pairs) < 0.005,
            ),
            verdict(
                f"AIM is at most one point below divided space-time attention, with {part:.1%} of its trainable "
                f"parameters: {ahead[0]:+.1f} points, and {ahead[1]:+.1f} points with four times as many steps.",
                min(ahead) >= -1,
            ),
            verdict(
                f"With a tenth of the training clips, AIM is ahead: {tenth[0]:.1f}% against {tenth[1]:.1f}%.",
                tenth[0] > tenth[1],
            ),
        ]
    )


def is_significant(differences: Facts) -> bool:
    """Return whether a mean difference exceeds twice its standard error.

    Example:
        >>> is_significant({"mean": 0.02, "sd": 0.01, "values": [0.01, 0.02, 0.03]})
        True
    """
    return abs(differences["mean"]) > 2 * differences["sd"] / math.sqrt(len(differences["values"]))


def points(differences: Facts) -> str:
    """Return the mean and standard deviation of differences, in percentage points."""
    return f"{100 * differences['mean']:+.1f} ± {100 * differences['sd']:.1f}"


def verdict(expected: str, held: bool, but: str = "") -> str:
    """Return the list item of an expectation: whether it held, and a qualification."""
    return f"- {expected} {'As expected' if held else '**Not as expected**'}{but}."


def rounding(aim: Facts) -> str:
    """Return the effect of saving AIM's weights in half precision."""
    effects = []
    for dtype in ("float16", "bfloat16"):
        trials = [trial[f"torch.{dtype}"] for trial in aim["rounded"]]
        change = statistics.mean(trial["top1"] for trial in trials) - aim["top1"]["mean"]
        changed = ", ".join(str(trial["changed"]) for trial in trials)
        effects.append(f"{round(100 * change, 2) + 0:+.2f} points in {dtype} ({changed})")
    return (
        f"Rounding AIM's trained weights changes top-1 by {' and by '.join(effects)}. In parentheses: "
        "predictions that change, by seed."
    )


def draw(found: dict[str, list[Facts]], path: Path) -> None:
    """Plot top-1 over the trainable parameters, and over the number of training clips."""
    plt.rcParams["svg.hashsalt"] = "accuracy"  # the same file from the same numbers
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    for row in found["main"]:
        top1 = row["top1"]
        left.errorbar(row["parameters"], 100 * top1["mean"], 100 * top1["sd"], fmt="o", capsize=3, label=row["row"])
    left.set(xscale="log", xlabel="trainable parameters", ylabel="top-1 (%)", ylim=(0, 100))
    figure.legend(loc="outside lower center", ncols=4, fontsize=7)
    for row, name in ((AIM, "AIM"), (DIVIDED, DIVIDED.name)):
        rows = [of(found, row, fraction) for fraction in sorted({row.fraction for row in (*DATA, AIM)})]
        means, deviations = ([100 * row["top1"][key] for row in rows] for key in ("mean", "sd"))
        right.errorbar([row["clips"] for row in rows], means, deviations, fmt="o-", capsize=3, label=name)
    right.set(xscale="log", xlabel="training clips", ylim=(0, 100))
    right.legend(loc="lower right", fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def of(found: dict[str, list[Facts]], row: Row, fraction: float = 1.0) -> Facts:
    """Return the summary of a row."""
    rows = (*found["main"], *found["data"])
    return next(facts for facts in rows if (facts["row"], facts["fraction"]) == (row.name, fraction))


def spread(values: Facts) -> str:
    """Return the mean and standard deviation in percent.

    Example:
        >>> spread({"mean": 0.5, "sd": 0.012})
        '50.0 ± 1.2%'
    """
    return f"{100 * values['mean']:.1f} ± {100 * values['sd']:.1f}%"


def of_paper(top1: float | None) -> str:
    """Return the paper's top-1, or a dash."""
    return "-" if top1 is None else f"{top1}%"


if __name__ == "__main__":
    for name in ("accuracy", "accuracy_over_time"):
        publish(RESULTS, name)
