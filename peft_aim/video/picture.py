"""Draw predictions: strips of frames with the predicted class, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from peft_aim.files import write_atomically
from peft_aim.video.metrics import Metrics


@dataclass(frozen=True)
class Row:
    """A row of an image: the frames of one clip and a text.

    Attributes:
        images: Frames, ``(T, H, W, 3)`` in [0, 1].
        text: Text beside the frames.
        color: Color of the text.
    """

    images: Tensor
    text: str
    color: str = "black"


def row_of(images: Tensor, probabilities: Tensor, classes: Sequence[str], label: int | None = None) -> Row:
    """Return the row of a clip with its prediction: green if correct, red if wrong, black if the class is unknown.

    Args:
        images: Frames, ``(T, H, W, 3)`` in [0, 1].
        probabilities: Class probabilities, ``(classes,)``.
        classes: Class names.
        label: Index of the true class, None if unknown.
    """
    guess = int(probabilities.argmax())
    text = f"{classes[guess]}  {probabilities[guess]:.0%}"
    if label is None:
        return Row(images, text)
    if guess == label:
        return Row(images, text, "tab:green")
    return Row(images, f"{text}\n(true: {classes[label]})", "tab:red")


def draw_strip(path: Path, rows: Sequence[Row]) -> None:
    """Draw each clip as a row of frames with its text beside them.

    Args:
        path: The image file to write.
        rows: The clips.
    """
    frames = max(len(row.images) for row in rows)
    figure = Figure(figsize=(1.1 * frames + 2.6, 1.15 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), frames + 1, squeeze=False, width_ratios=[*[1.0] * frames, 2.2])
    for axes, row in zip(grid, rows, strict=True):
        for axis in axes:
            axis.axis("off")
        for axis, image in zip(axes, row.images, strict=False):
            axis.imshow(image.numpy())
        axes[-1].text(0, 0.5, row.text, va="center", color=row.color, parse_math=False)
    grid[0, -1].set_title("prediction", loc="left")
    write_atomically(path, partial(figure.savefig, dpi=110))


def draw_confusion(path: Path, metrics: Metrics) -> None:
    """Draw the confusion matrix: what fraction of each true class (rows) gets which prediction (columns).

    Args:
        path: The image file to write.
        metrics: The results.
    """
    matrix, count = np.array(metrics.confusion), len(metrics.classes)
    rates = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    side = min(20.0, 3 + 0.45 * count)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(rates, cmap="Blues", vmin=0, vmax=1), label="fraction of the true class")
    axes.set(xlabel="predicted", ylabel="true", title=f"top-1 {metrics.top1:.1%}, {metrics.videos} videos")
    if count <= 60:  # more names would be illegible
        axes.set_xticks(range(count), metrics.classes, rotation=90, parse_math=False)
        axes.set_yticks(range(count), metrics.classes, parse_math=False)
    if count <= 20:
        for (row, column), number in np.ndenumerate(matrix):
            axes.text(
                column, row, number, ha="center", va="center", color="white" if rates[row, column] > 0.5 else "black"
            )
    write_atomically(path, partial(figure.savefig, dpi=110))
