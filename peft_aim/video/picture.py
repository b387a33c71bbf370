"""Draw predictions: strips of frames with the predicted class, and the confusion matrix.

Classes whose names no installed font can show are drawn as their indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from peft_aim.files import write_atomically
from peft_aim.video.fonts import fonts_for
from peft_aim.video.metrics import Metrics, printable
from peft_aim.video.problem_type import SINGLE_LABEL, text_of, top_of

NO_FONT = "classes by index, since no installed font has their names"


@dataclass(frozen=True)
class Row:
    """A row of an image: the frames of one clip and a text.

    Attributes:
        images: Frames, ``(T, H, W, 3)`` in [0, 1].
        text: Text beside the frames.
        color: Color of the text.
        by_index: The text with classes by index, drawn if no installed font has all characters of their names.
    """

    images: Tensor
    text: str
    color: str = "black"
    by_index: str = ""


def row_of(
    images: Tensor,
    probabilities: Tensor,
    classes: Sequence[str],
    label: int | None = None,
    problem_type: str | None = None,
) -> Row:
    """Return the row of a clip with its prediction: green if correct, red if wrong, black if the class is unknown.

    Args:
        images: Frames, ``(T, H, W, 3)`` in [0, 1].
        probabilities: Class probabilities, or numbers, ``(classes,)``.
        classes: Class names, or what numbers are called.
        label: Index of the true class, None if unknown.
        problem_type: What is predicted, see :mod:`peft_aim.video.problem_type`.
    """
    guess = int(probabilities.argmax())
    color = "black" if label is None else "tab:green" if guess == label else "tab:red"

    def text(names: Sequence[str]) -> str:
        if problem_type not in (None, SINGLE_LABEL):
            return text_of(top_of(probabilities, names, 1, problem_type), problem_type).replace(", ", "\n")
        true = f"\n(true: {names[label]})" if color == "tab:red" else ""
        return f"{names[guess]}  {probabilities[guess]:.0%}{true}"

    return Row(images, text([printable(name) for name in classes]), color, text(_numbered(classes)))


def draw_strip(path: Path, rows: Sequence[Row]) -> None:
    """Draw each clip as a row of frames with its text beside them.

    Args:
        path: The image file to write.
        rows: The clips.
    """
    frames = max(len(row.images) for row in rows)
    figure = Figure(figsize=(1.1 * frames + 2.6, 1.15 * len(rows)), layout="constrained")
    with fonts_for(row.text for row in rows) as can_be_drawn:
        grid = figure.subplots(len(rows), frames + 1, squeeze=False, width_ratios=[*[1.0] * frames, 2.2])
        for axes, row in zip(grid, rows, strict=True):
            for axis in axes:
                axis.axis("off")
            for axis, image in zip(axes, row.images, strict=False):
                axis.imshow(image.numpy())
            text = row.text if can_be_drawn else row.by_index
            axes[-1].text(0, 0.5, text, va="center", color=row.color, parse_math=False)
        grid[0, -1].set_title("prediction", loc="left")
        if not can_be_drawn:
            figure.supxlabel(NO_FONT, fontsize="small")
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
    names = [printable(name) for name in metrics.classes] if count <= 60 else []  # more would be illegible
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    with fonts_for(names) as can_be_drawn:
        axes = figure.subplots()
        figure.colorbar(axes.imshow(rates, cmap="Blues", vmin=0, vmax=1), label="fraction of the true class")
        axes.set(xlabel="predicted", ylabel="true", title=f"top-1 {metrics.top1:.1%}, {metrics.videos} videos")
        if not can_be_drawn:
            names = _numbered(names)
            axes.set_xlabel(f"predicted\n{NO_FONT}")
        if names:
            axes.set_xticks(range(count), names, rotation=90, parse_math=False)
            axes.set_yticks(range(count), names, parse_math=False)
        if count <= 20:
            for (row, column), number in np.ndenumerate(matrix):
                color = "white" if rates[row, column] > 0.5 else "black"
                axes.text(column, row, number, ha="center", va="center", color=color)
        write_atomically(path, partial(figure.savefig, dpi=110))


def _numbered(classes: Sequence[str]) -> list[str]:
    return [f"class {index}" for index in range(len(classes))]
