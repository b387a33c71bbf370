"""Tables and a plot made from the records alone; ``python -m benchmarks.real.tables`` makes them again."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.real.blur import in_words
from benchmarks.real.rows import AIM, DIVIDED, FULL, LINEAR, LORA, ROWS, SMALL, SPATIAL, TEMPORAL, Row, rate
from benchmarks.reporting import tables
from benchmarks.reporting.record import RESULTS
from benchmarks.reporting.tables import headed, line

matplotlib.use("Agg")

import matplotlib.pyplot as plt

Facts = dict[str, Any]
RESAMPLES = 2_000


def interval(trials: list[Facts], key: str = "right") -> tuple[float, float]:
    """Return the 95% interval of the mean over seeds, by resampling persons with replacement.

    Clips of one person are not independent, so that an interval over clips would be too narrow.

    Args:
        trials: Trials of one row and task, one per seed.
        key: What is averaged over the videos, "right" or "within".

    Example:
        >>> interval([{"groups": ["a", "a", "b"], "right": [1, 1, 1]}])
        (1.0, 1.0)
    """
    by_group: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        for group, value in zip(trial["groups"], trial[key], strict=True):
            by_group[group].append(value)
    sums = np.array([[sum(values), len(values)] for values in by_group.values()])
    drawn = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    totals = sums[drawn].sum(1)
    least, greatest = np.quantile(totals[:, 0] / totals[:, 1], (0.025, 0.975))
    return float(least), float(greatest)


def of(record: Facts, row: Row, task: str) -> list[Facts]:
    """Return the trials of a row on a task, one per seed."""
    return [t for t in record["trials"] if (t["settings"]["row"], t["settings"]["task"]) == (row.name, task)]


def mean(trials: list[Facts], key: str) -> float:
    """Return the mean over seeds."""
    return statistics.mean(trial[key] for trial in trials)


def accuracy(trials: list[Facts]) -> str:
    """Return top-1 with its interval, a dash if the row was not run."""
    if not trials:
        return "-"
    least, greatest = interval(trials)
    return f"{mean(trials, 'top1'):.1%} ({least:.1%} to {greatest:.1%})"


def cells(record: Facts, row: Row) -> list[str]:
    """Return the accuracy of a row on both tasks, and within the pairs."""
    both, order = [accuracy(of(record, row, task)) for task in ("signs", "order")], of(record, row, "order")
    return [*both, f"{mean(order, 'within_pair'):.1%}" if order else "-"]


def costed(record: Facts) -> list[tuple[Row, Facts]]:
    """Return the rows of a record with their costs; it may lack rows that were added later."""
    found = {cost["row"]: cost for cost in record["costs"]}
    return [(row, found[row.name]) for row in ROWS if row.name in found]


HEAD = [
    "",
    "trainable parameters",
    "signs, top-1 (95% interval)",
    "order, top-1 (95% interval)",
    "within-pair accuracy",
]


def main_table(record: Facts) -> str:
    """Return the table of all rows."""
    lines = []
    for row, cost in costed(record):
        sizes = f"{cost['file_bytes'] / 1e6:.2f} MB", f"{cost['activations']:.2f}", f"{cost['time']:.2f}"
        seeds = [str(len(of(record, row, task))) for task in ("signs", "order")]
        rates = [f"{rate(row, rates):g}" for rates in record["rates"].values()]
        lines.append(
            line(row.name, f"{cost['parameters']:,}", *cells(record, row), ", ".join(seeds), *sizes, ", ".join(rates))
        )
    more = ["seeds (signs, order)", "file", "activations / AIM", "time / AIM", "learning rates (signs, order)"]
    return headed([*HEAD, *more], lines)


def front_table(record: Facts) -> str:
    """Return the table of the project's README, without the rows of AIM that lack adapters and weaker baselines."""
    rows = [(row, cost) for row, cost in costed(record) if row not in (LINEAR, LORA, FULL, SPATIAL, TEMPORAL)]
    lines = [line(row.name, f"{cost['parameters']:,}", *cells(record, row)) for row, cost in rows]
    return headed(["real videos", *HEAD[1:]], lines)


def small_table(record: Facts) -> str:
    """Return the table of the surveillance clips."""
    lines = [line(row.name, accuracy(of(record, row, "surveillance"))) for row in SMALL]
    return headed(["80 surveillance clips", "top-1 (95% interval)"], lines)


def steps_to(curve: list[Facts], wanted: float = 0.9) -> int | None:
    """Return the number of steps after which within-pair accuracy first reaches a value.

    Example:
        >>> steps_to([{"step": 20, "within_pair": 0.5}, {"step": 40, "within_pair": 0.95}])
        40
    """
    return next((point["step"] for point in curve if point["within_pair"] >= wanted), None)


def curves(record: Facts) -> list[Facts]:
    """Return the trials on order that were evaluated during training."""
    return [trial for row in ROWS for trial in of(record, row, "order") if trial["curve"]] + record["longer"]


def curve_table(record: Facts) -> str:
    """Return how fast the order of frames is learned."""
    lines = []
    for trial in curves(record):
        curve = trial["curve"]
        reached, last = steps_to(curve), curve[-1]
        shown = str(reached) if reached else f"not within {last['step']}"
        lines.append(line(trial["settings"]["row"], shown, f"{last['within_pair']:.1%} after {last['step']} steps"))
    return headed(["order", "steps until 90% within the pairs", "within-pair accuracy at the end"], lines)


def grid_table(record: Facts) -> str:
    """Return the top-1 accuracy that learning rates were chosen by."""
    lines = []
    for row in ROWS:
        found = [rates.get(row.name, {}) for rates in record["grid"].values()]
        shown = [", ".join(f"{float(rate):g}: {top1:.1%}" for rate, top1 in rates.items()) for rates in found]
        lines += [line(row.name, *shown)] if any(found) else []
    return headed(["learning rates: top-1, 5 held-out training people", "signs", "order"], lines)


def choices_table(record: Facts) -> str:
    """Return what was tried to learn the order of frames, on some of the training people."""
    lines = [
        line(t["settings"]["row"], f"{t['loss']:.2f}", f"{t['within_pair']:.1%}", f"{t['top1']:.1%}")
        for t in record["choices"]
    ]
    return headed(
        ["AIM on order, 5 held-out training people", "training loss", "within-pair accuracy", "top-1"], lines
    )


def comparison(record: Facts) -> str:
    """Return AIM against full fine-tuning with divided attention, in words; nothing if one of them was not run."""
    if not all(of(record, row, task) for row in (AIM, DIVIDED) for task in ("signs", "order")):
        return ""
    parameters = {cost["row"]: cost["parameters"] for cost in record["costs"]}
    ahead = [
        100 * (mean(of(record, AIM, task), "top1") - mean(of(record, DIVIDED, task), "top1"))
        for task in ("signs", "order")
    ]
    part = parameters[AIM.name] / parameters[DIVIDED.name]
    return (
        f"AIM against {DIVIDED.name}: {ahead[0]:+.1f} points on signs and {ahead[1]:+.1f} points on order, with "
        f"{part:.1%} of its trainable parameters."
    )


def origin(plan: Facts, trials: list[Facts]) -> str:
    """Return the sizes of trials, and where and at which commits they were run."""
    runs = Counter((trial["device"], trial["commit"]) for trial in trials)
    where = "; ".join(f"{count} on {device} at commit {commit}" for (device, commit), count in sorted(runs.items()))
    return f"{plan['steps']} steps of {plan['batch']} clips of {plan['size']} px. Trials: {where}."


def page(record: Facts) -> str:
    """Return all tables in Markdown."""
    return "\n\n".join(
        [
            main_table(record),
            comparison(record),
            curve_table(record),
            choices_table(record),
            grid_table(record),
            in_words(record["blur"]),
            small_table(record),
            origin(record["plan"], [*record["trials"], *record["choices"], *record["longer"]]),
        ],
    )


def draw(record: Facts, path: Path) -> None:
    """Plot top-1 of both tasks over the trainable parameters, and within-pair accuracy over the steps."""
    plt.rcParams["svg.hashsalt"] = "real"  # the same file from the same numbers
    figure, (*axes, right) = plt.subplots(1, 3, figsize=(13, 4.5), layout="constrained")
    for task, axis in zip(("signs", "order"), axes, strict=True):
        for row, cost in costed(record):
            trials = of(record, row, task)
            if not trials:
                continue
            top1, ends = mean(trials, "top1"), interval(trials)
            spread = [[100 * max(0, top1 - ends[0])], [100 * max(0, ends[1] - top1)]]
            axis.errorbar(cost["parameters"], 100 * top1, spread, fmt="o", capsize=3, label=row.name)
        axis.set(xscale="log", xlabel="trainable parameters", title=f"{task}, top-1 (%)", ylim=(0, 102))
    for trial in curves(record):
        steps = [point["step"] for point in trial["curve"]]
        right.plot(steps, [100 * point["within_pair"] for point in trial["curve"]], label=trial["settings"]["row"])
    right.set(xlabel="steps", title="order, within-pair accuracy (%)", ylim=(40, 102))
    right.legend(fontsize=7)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def short_page(record: Facts) -> str:
    """Return the results of the rows that were run with all seeds, and what makes the order of frames visible."""
    both, seeds = ("signs", "order"), record["plan"]["seeds"]
    rows = [row for row in ROWS if all(len(of(record, row, task)) == seeds for task in both)]
    table = headed([f"{seeds} seeds", *HEAD[2:]], [line(row.name, *cells(record, row)) for row in rows])
    shown = [trial for row in rows for task in both for trial in of(record, row, task)] + record["choices"]
    return f"{table}\n\n{choices_table(record)}\n\n{origin(record['plan'], shown)}"


def over_time_page(record: Facts) -> str:
    """Return the tables of attention and convolutions over time."""
    return "\n\n".join([main_table(record), grid_table(record), origin(record["plan"], record["trials"])])


def publish(folder: Path, name: str) -> None:
    """Write the tables of a record into the READMEs, or beside it in another folder.

    Args:
        folder: Folder of the record.
        name: "real", which comes with a plot, "real_cpu" or "real_over_time".
    """
    record = json.loads((folder / f"{name}.json").read_text())
    if name == "real_over_time":
        tables.publish(name, folder, over_time_page(record))
    elif name == "real_cpu":
        tables.publish(name, folder, short_page(record))
    else:
        draw(record, folder / "real.svg")
        tables.publish(name, folder, page(record), front_table(record))


if __name__ == "__main__":
    for name in ("real", "real_cpu", "real_over_time"):
        publish(RESULTS, name)
