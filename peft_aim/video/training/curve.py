"""The course of training: loss and val top-1 by epoch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from peft_aim.files import write_atomically

Point = dict[str, Any]


def is_whole(epoch: float) -> bool:
    """Return whether a number of epochs is whole, up to rounding.

    Example:
        >>> is_whole(2 + 1e-12), is_whole(2.5)
        (True, False)
    """
    return abs(epoch - round(epoch)) < 1e-6


def curve(history: Iterable[dict[str, float]]) -> list[Point]:
    """Return the course of training in the logs of transformers' Trainer.

    An epoch that was interrupted has several losses, of some steps each.

    Args:
        history: The logs, ``trainer.state.log_history``.

    Returns:
        ``{"epoch": int, "loss": float, "top1": float | None}`` for each whole epoch; ``top1`` is None if it was not
        evaluated.

    Example:
        >>> half = {"epoch": 0.5, "step": 1, "loss": 4.0}
        >>> curve([half, {"epoch": 1.0, "step": 2, "loss": 2.0}, {"epoch": 1.0, "step": 2, "eval_top1": 0.5}])
        [{'epoch': 1, 'loss': 3.0, 'top1': 0.5}]
    """
    points: list[Point] = []
    began = last = 0
    total = 0.0
    for entry in history:
        if "loss" in entry:
            total, last = total + entry["loss"] * (entry["step"] - last), entry["step"]
            if is_whole(entry["epoch"]):
                points.append({"epoch": round(entry["epoch"]), "loss": round(total / (last - began), 6), "top1": None})
                began, total = last, 0.0
        elif "eval_top1" in entry:
            points[-1]["top1"] = entry["eval_top1"]
    return points


def draw_curve(path: Path, points: list[Point], kept: int | None = None) -> None:
    """Draw training loss and val top-1 by epoch.

    Args:
        path: The image file to write.
        points: The points, see :func:`curve`.
        kept: The epoch whose weights were kept, which a line marks.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([p["epoch"] for p in points], [p["loss"] for p in points], ".-", color="tab:blue", label="training loss")
    axes.set(xlabel="epoch", ylabel="training loss")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    evaluated = [p for p in points if p["top1"] is not None]
    if evaluated:
        right = axes.twinx()
        epochs, top1 = [p["epoch"] for p in evaluated], [p["top1"] for p in evaluated]
        right.plot(epochs, top1, ".-", color="tab:orange", label="val top-1")
        right.set_ylabel("val top-1")
        right.set_ylim(0, 1)
        right.yaxis.set_major_formatter(PercentFormatter(1))
    if kept:
        axes.axvline(kept, color="tab:gray", linestyle=":", label="kept weights")
    figure.legend(loc="outside upper center", ncols=3)
    write_atomically(path, partial(figure.savefig, dpi=110))
