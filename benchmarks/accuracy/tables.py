"""Makes tables and a plot of ``accuracy.json`` alone, once more by ``python -m benchmarks.accuracy_tables``."""

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


def summary(row: Row, chosen: list[Facts]) -> Facts:
    """Return what a row of a table needs to know, over the seeds.

    Args:
        row: The row.
        chosen: The trial of each seed with the learning rate that did best on the validation clips.
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
    """Return values with their mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": deviation, "values": [round(value, 4) for value in values]}


def publish(folder: Path) -> None:
    """Write the plot beside ``accuracy.json``, and the tables into this folder's README, or beside it elsewhere."""
    found = json.loads((folder / "accuracy.json").read_text())
    draw(found["tables"], folder / "accuracy.svg")
    tables.publish("accuracy", folder, page(found), front_table(found))


def page(record: Facts) -> str:
    """Return all tables as Markdown."""
    found = record["tables"]
    parts = [main_table(found["main"]), expectations(found), "**Part of the training clips**", data_table(found)]
    parts += ["**Four times as many steps**", longer_table(found)]
    parts += ["**Width of the bottleneck, and where adapters are**", ablations(found), rounding(of(found, AIM))]
    return "\n\n".join(parts)


def main_table(rows: list[Facts]) -> str:
    """Return the ladder and the rivals."""
    return headed(["", "trained parameters", "top-1", "within the pair", "paper, SSv2"], list(map(of_row, rows)))


def of_row(row: Facts) -> str:
    """Return a row's line."""
    scores = (spread(row[key]) for key in ("top1", "within_pair"))
    return line(row["row"], f"{row['parameters']:,}", *scores, of_paper(row["paper"]))


def data_table(found: dict[str, list[Facts]]) -> str:
    """Return AIM against full fine-tuning on parts of the training clips."""
    lines = []
    for fraction in sorted({row.fraction for row in (*DATA, AIM)}):
        aim, full = (of(found, row, fraction) for row in (AIM, DIVIDED))
        papers = "{} / {}".format(*PAPER_DATA[fraction])
        ahead = f"{100 * (aim['top1']['mean'] - full['top1']['mean']):+.1f}"
        lines.append(line(f"{fraction:.0%}", aim["clips"], spread(aim["top1"]), spread(full["top1"]), ahead, papers))
    return headed(["part", "clips", "AIM", DIVIDED.name, "AIM is ahead by", "paper, K400"], lines)


def longer_table(found: dict[str, list[Facts]]) -> str:
    """Return the same two with more steps, at the learning rates that were best with fewer."""
    lines = [
        line(row.name, spread(of(found, row)["top1"]), *(spread(longer[key]) for key in ("top1", "within_pair")))
        for row, longer in zip((AIM, DIVIDED), found["longer"], strict=True)
    ]
    return headed(["", "top-1", "top-1, four times as long", "within the pair, four times as long"], lines)


def front_table(found: Facts) -> str:
    """Return for the front page the ladder, and what AIM is compared with."""
    rows = {row["row"]: row for row in found["tables"]["main"]}
    longer = {row["row"]: spread(row["top1"]) for row in found["tables"]["longer"]}
    lines = [
        line(
            name,
            f"{rows[name]['parameters']:,}",
            *(spread(rows[name][k]) for k in ("top1", "within_pair")),
            longer.get(name, "-"),
        )
        for name in (row.name for row in (*BLIND.values(), TEMPORAL, AIM, DIVIDED))
    ]
    return headed(["synthetic clips", "trained", "top-1", "within the pair", "top-1, four times as long"], lines)


def ablations(found: dict[str, list[Facts]]) -> str:
    """Return AIM with other widths, and in some of the blocks."""
    whole = {**of(found, AIM), "row": "AIM: ratio 0.25, all blocks", "paper": 83.9}
    lines = [of_row(row) for row in (whole, *found["ratio"], *found["position"])]
    return headed(["", "trained parameters", "top-1", "within the pair", "paper, K400"], lines)


def expectations(found: dict[str, list[Facts]]) -> str:
    """Return what was expected before anything was run, each with what came out."""
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
            "Expected from the paper, and what came out:",
            "",
            verdict(
                f"Each adapter adds to the one before: {', '.join(steps)} in the mean.",
                all(top1[low.name] < top1[high.name] for low, high in pairwise(ladder)),
                "" if told_apart(last) else f", but the seeds cannot tell the last step, {points(last)}, from none",
            ),
            verdict(
                f"Without attention along time a model is at chance within the pair: {100 * min(pairs):.1f} to "
                f"{100 * max(pairs):.1f}% in all its rows and seeds (it has to be, as the test clips are made).",
                max(abs(value - 0.5) for value in pairs) < 0.005,
            ),
            verdict(
                f"AIM is within a point of divided space-time attention, or above, with {part:.1%} of its trained "
                f"parameters: {ahead[0]:+.1f} points, but {ahead[1]:+.1f} after four times as many steps.",
                min(ahead) >= -1,
            ),
            verdict(
                f"With a tenth of the clips AIM is ahead: {tenth[0]:.1f}% against {tenth[1]:.1f}%.",
                tenth[0] > tenth[1],
            ),
        ]
    )


def told_apart(differences: Facts) -> bool:
    """Whether a mean of differences is beyond twice its standard error.

    Example:
        >>> told_apart({"mean": 0.02, "sd": 0.01, "values": [0.01, 0.02, 0.03]})
        True
    """
    return abs(differences["mean"]) > 2 * differences["sd"] / math.sqrt(len(differences["values"]))


def points(differences: Facts) -> str:
    """Return mean and standard deviation of differences in percentage points."""
    return f"{100 * differences['mean']:+.1f} ± {100 * differences['sd']:.1f}"


def verdict(expected: str, held: bool, but: str = "") -> str:
    """Return an item of a list."""
    return f"- {expected} {'As expected' if held else '**Not as expected**'}{but}."


def rounding(aim: Facts) -> str:
    """Return what saving AIM's weights in half precision costs."""
    told = []
    for dtype in ("float16", "bfloat16"):
        trials = [trial[f"torch.{dtype}"] for trial in aim["rounded"]]
        change = statistics.mean(trial["top1"] for trial in trials) - aim["top1"]["mean"]
        changed = ", ".join(str(trial["changed"]) for trial in trials)
        told.append(f"to {dtype} changes top-1 by {round(100 * change, 2) + 0:+.2f} points ({changed})")
    return f"Rounding AIM's trained weights {', '.join(told)}; in brackets the answers that change, by seed."


def draw(found: dict[str, list[Facts]], path: Path) -> None:
    """Draw top-1 over trained parameters, and over the part of the training clips."""
    plt.rcParams["svg.hashsalt"] = "accuracy"  # the same file from the same numbers
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    for row in found["main"]:
        top1 = row["top1"]
        left.errorbar(row["parameters"], 100 * top1["mean"], 100 * top1["sd"], fmt="o", capsize=3, label=row["row"])
    left.set(xscale="log", xlabel="trained parameters", ylabel="top-1 in percent", ylim=(0, 100))
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
    """Return what was found for a row."""
    rows = (*found["main"], *found["data"])
    return next(known for known in rows if (known["row"], known["fraction"]) == (row.name, fraction))


def spread(values: Facts) -> str:
    """Return mean and standard deviation in percent.

    Example:
        >>> spread({"mean": 0.5, "sd": 0.012})
        '50.0 ± 1.2%'
    """
    return f"{100 * values['mean']:.1f} ± {100 * values['sd']:.1f}%"


def of_paper(top1: float | None) -> str:
    """Return the paper's figure, if it has one."""
    return "-" if top1 is None else f"{top1}%"


if __name__ == "__main__":
    publish(RESULTS)
