"""Tables and a picture made from ``early.json`` alone; ``python -m benchmarks.early.tables`` makes them again."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

from benchmarks.early.adapters import BIDIRECTIONAL, CAUSAL, FRACTION, PRECEDED
from benchmarks.early.scoring import APPROXIMATE, PARTS, SAMPLED, STREAM, TRUNCATED, Facts
from benchmarks.real.tables import interval, mean
from benchmarks.reporting import tables
from benchmarks.reporting.record import RESULTS
from benchmarks.reporting.tables import headed, line

matplotlib.use("Agg")

import matplotlib.pyplot as plt

WAYS = {
    STREAM: (CAUSAL, "causal, streamed: one frame at a time"),
    TRUNCATED: (BIDIRECTIONAL, "bidirectional, on the frames seen"),
    SAMPLED: (BIDIRECTIONAL, "bidirectional, on 8 frames sampled anew from the part seen"),
    APPROXIMATE: (BIDIRECTIONAL, "bidirectional, streamed with `approximate=True`"),
}
WHOLE, HALF = 100, 50  # percent


def of(record: Facts, task: str, row: str) -> list[Facts]:
    """Return the trials of a row on a task, one per seed."""
    return [t for t in record["trials"] if (t["settings"]["task"], t["settings"]["row"]) == (task, row)]


def points(record: Facts, task: str, way: str, part: int) -> list[Facts]:
    """Return the accuracy after a part of the videos, one per seed."""
    row, _ = WAYS[way]
    return at(of(record, task, row), way, part)


def at(trials: list[Facts], way: str, part: int) -> list[Facts]:
    """Return the accuracy of trials after a part of the videos."""
    return [point for trial in trials for point in trial["curves"][way] if point["part"] == part]


def in_percent(found: list[Facts], groups: list[str]) -> str:
    """Return mean top-1 with its interval."""
    least, greatest = interval([{"groups": groups, "right": bits(point, "right")} for point in found])
    return f"{mean(found, 'top1'):.1%} ({least:.1%} to {greatest:.1%})"


def within(found: list[Facts]) -> str:
    """Return mean within-pair accuracy, a dash for classes that are not in pairs."""
    return "-" if found[0]["within_pair"] is None else f"{mean(found, 'within_pair'):.1%}"


def difference(found: list[Facts], others: list[Facts], groups: list[str], key: str = "right") -> str:
    """Return how much higher an accuracy is than another on the same videos and seeds, in points, with its interval.

    Example:
        >>> one, other = [{"right": "110"}], [{"right": "100"}]
        >>> difference(one, other, ["a", "a", "a"])
        '+33.3 (+33.3 to +33.3)'
    """
    if found[0][key] is None:
        return "-"
    pairs = [(bits(one, key), bits(other, key)) for one, other in zip(found, others, strict=True)]
    gains = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]
    ends = interval([{"groups": groups, key: gain} for gain in gains], key)
    average = sum(map(sum, gains)) / sum(map(len, gains))
    least, middle, greatest = (f"{round(100 * value, 1) + 0:+.1f}" for value in (ends[0], average, ends[1]))
    return f"{middle} ({least} to {greatest})"


def bits(point: Facts, key: str) -> list[int]:
    """Return which videos are right, as numbers."""
    return list(map(int, point[key]))


def whole_table(record: Facts) -> str:
    """Return what causal attention costs on whole videos."""
    lines = []
    for task, groups in record["groups"].items():
        both, one = (points(record, task, way, WHOLE) for way in (TRUNCATED, STREAM))
        found = [cell for trials in (both, one) for cell in (in_percent(trials, groups), within(trials))]
        gains = [difference(one, both, groups, key) for key in ("right", "within")]
        lines.append(line(task, *found, *gains))
    head = [f"{row}, {name}" for row in (BIDIRECTIONAL, CAUSAL) for name in ("top-1 (95% interval)", "within-pair")]
    return headed(["whole videos", *head, "difference of top-1, points", "of within-pair accuracy"], lines)


def parts_table(record: Facts) -> str:
    """Return top-1 over the part of the video that has passed."""
    lines = []
    for task, groups in record["groups"].items():
        half = points(record, task, STREAM, HALF)
        for way, (_, label) in WAYS.items():
            shown = [f"{mean(points(record, task, way, part), 'top1'):.1%}" for part in PARTS]
            gain = "" if way == STREAM else difference(half, points(record, task, way, HALF), groups)
            lines.append(line(task, label, *shown, gain))
    return headed(
        ["task", "top-1 after", *(f"{part}%" for part in PARTS), f"causal minus this, after {HALF}%, points"], lines
    )


def running_table(record: Facts) -> str:
    """Return what is lost if a stream runs on without reset."""
    rows = {CAUSAL: "clips", PRECEDED: f"clips, which follow others in {FRACTION:.0%} of the steps"}
    lines = []
    for task, groups in record["groups"].items():
        for row, label in rows.items():
            trials = of(record, task, row)
            if not trials:
                continue
            fresh, later = at(trials, STREAM, WHOLE), [trial["running"] for trial in trials]
            cells = [cell for found in (fresh, later) for cell in (in_percent(found, groups), within(found))]
            lines.append(line(task, label, len(trials), *cells, difference(later, fresh, groups)))
    cases = ("reset before each video", "without reset")
    head = [f"{case}, {name}" for case in cases for name in ("top-1 (95% interval)", "within-pair")]
    return headed(["causal, streamed", "trained on", "seeds", *head, "difference of top-1, points"], lines)


def origin(record: Facts) -> str:
    """Return the sizes of the trials, and where they were run."""
    plan, trials = record["plan"], record["trials"]
    devices = sorted({trial["device"] for trial in trials})
    trained, scored = ({trial[key] for trial in trials} for key in ("trained at", "commit"))
    return (
        f"{plan['steps']} steps of {plan['batch']} clips of {plan['size']} px (signs, order), or "
        f"{plan['synthetic_steps']} of {plan['synthetic_batch']} (reversals); {plan['seeds']} seeds. On "
        f"{', '.join(devices)}; trained at commit {', '.join(sorted(trained))}, scored at {', '.join(sorted(scored))}."
    )


def page(record: Facts) -> str:
    """Return all tables in Markdown."""
    return "\n\n".join(
        [
            whole_table(record),
            "**Accuracy over the part of the video seen**",
            parts_table(record),
            "**A stream that runs on**",
            running_table(record),
            origin(record),
        ]
    )


def draw(record: Facts, path: Path) -> None:
    """Plot top-1 over the part of the video that has passed, one panel per task."""
    plt.rcParams["svg.hashsalt"] = "early"  # the same file from the same numbers
    tasks = list(record["groups"])
    figure, axes = plt.subplots(1, len(tasks), figsize=(13, 4.5), layout="constrained", sharey=True)
    for task, axis in zip(tasks, axes, strict=True):
        for way, (row, label) in WAYS.items():
            values = [100 * mean(points(record, task, way, part), "top1") for part in PARTS]
            style = "o-" if row == CAUSAL else ".--"
            axis.plot(PARTS, values, style, label=label.replace("`", ""))
        axis.set(xlabel="part of the video seen (%)", title=f"{task}, top-1 (%)", xlim=(0, 102), ylim=(0, 102))
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def publish(folder: Path) -> None:
    """Write the tables of the record into the README, or beside it in another folder, and the picture next to it."""
    record = json.loads((folder / "early.json").read_text())
    draw(record, folder / "early.svg")
    tables.publish("early", folder, page(record))


if __name__ == "__main__":
    publish(RESULTS)
