"""The course of training: loss and the metric of the val split by epoch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from peft_aim.files import write_atomically
from peft_aim.video.metrics import Measure

Point = dict[str, Any]


def is_whole(epoch: float) -> bool:
    """Return whether a number of epochs is whole, up to rounding.

    Example:
        >>> is_whole(2 + 1e-12), is_whole(2.5)
        (True, False)
    """
    return abs(epoch - round(epoch)) < 1e-6


def curve(history: Iterable[dict[str, float]], measure: Measure) -> list[Point]:
    """Return the course of training in the logs of transformers' Trainer.

    An epoch that was interrupted has several losses, of some steps each.

    Args:
        history: The logs, ``trainer.state.log_history``.
        measure: The metric of the val split.

    Returns:
        ``{"epoch": int, "loss": float, "top1": float | None}`` for each whole epoch; the metric, ``top1`` for example,
        is None if it was not evaluated.

    Example:
        >>> half = {"epoch": 0.5, "step": 1, "loss": 4.0}
        >>> whole = [{"epoch": 1.0, "step": 2, "loss": 2.0}, {"epoch": 1.0, "step": 2, "eval_top1": 0.5}]
        >>> curve([half, *whole], Measure("top1", "top-1"))
        [{'epoch': 1, 'loss': 3.0, 'top1': 0.5}]
    """
    points: list[Point] = []
    began = last = 0
    total = 0.0
    for entry in history:
        if "loss" in entry:
            total, last = total + entry["loss"] * (entry["step"] - last), entry["step"]
            if is_whole(entry["epoch"]):
                loss = round(total / (last - began), 6)
                points.append({"epoch": round(entry["epoch"]), "loss": loss, measure.key: None})
                began, total = last, 0.0
        elif f"eval_{measure.key}" in entry:
            points[-1][measure.key] = entry[f"eval_{measure.key}"]
    return points


def draw_curve(path: Path, points: list[Point], measure: Measure, kept: int | None = None) -> None:
    """Draw training loss and the metric of the val split by epoch.

    Args:
        path: The image file to write.
        points: The points, see :func:`curve`.
        measure: The metric.
        kept: The epoch whose weights were kept, which a line marks.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([p["epoch"] for p in points], [p["loss"] for p in points], ".-", color="tab:blue", label="training loss")
    axes.set(xlabel="epoch", ylabel="training loss")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    evaluated = [p for p in points if p[measure.key] is not None]
    if evaluated:
        right = axes.twinx()
        epochs, values = [p["epoch"] for p in evaluated], [p[measure.key] for p in evaluated]
        right.plot(epochs, values, ".-", color="tab:orange", label=f"val {measure.name}")
        right.set_ylabel(f"val {measure.name}")
        right.set_ylim(0, 1 if measure.is_fraction else None)
        if measure.is_fraction:
            right.yaxis.set_major_formatter(PercentFormatter(1))
    if kept:
        axes.axvline(kept, color="tab:gray", linestyle=":", label="kept weights")
    figure.legend(loc="outside upper center", ncols=3)
    write_atomically(path, partial(figure.savefig, dpi=110))
