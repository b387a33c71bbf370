"""Draws clips with what a model takes them for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from peft_aim.video.transforms import Preprocessing, to_image


@dataclass
class Row:
    """A clip and its prediction.

    Attributes:
        clip: The clip as the model got it, ``(T, 3, H, W)``.
        scores: Scores of the classes, ``(classes,)``.
        label: Index of the true class.
        classes: Names of the classes.
    """

    clip: Tensor
    scores: Tensor
    label: int
    classes: list[str]

    @property
    def text(self) -> str:
        """The predicted class with its probability, and the true one if it is another."""
        probabilities = self.scores.softmax(-1)
        guess = int(probabilities.argmax())
        text = f"{self.classes[guess]}  {probabilities[guess]:.0%}"
        return text if guess == self.label else f"{text}\n(it is: {self.classes[self.label]})"

    @property
    def is_right(self) -> bool:
        """Whether the predicted class is the true one."""
        return int(self.scores.argmax()) == self.label


def draw_predictions(path: Path, rows: list[Row], preprocessing: Preprocessing) -> None:
    """Draw the frames of each clip in a row, with its prediction beside them: green if right, red if not.

    Args:
        path: The picture to write.
        rows: The clips, all of T frames.
        preprocessing: How the clips were prepared.
    """
    frames = len(rows[0].clip)
    figure = Figure(figsize=(1.1 * frames + 2.6, 1.15 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), frames + 1, squeeze=False, width_ratios=[*[1.0] * frames, 2.2])
    for axes, row in zip(grid, rows, strict=True):
        for axis in axes:
            axis.axis("off")
        for axis, image in zip(axes, to_image(row.clip, preprocessing), strict=False):
            axis.imshow(image.numpy())
        axes[-1].text(0, 0.5, row.text, va="center", color="tab:green" if row.is_right else "tab:red")
    grid[0, -1].set_title("prediction", loc="left")
    figure.savefig(path, dpi=110)
