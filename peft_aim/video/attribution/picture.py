"""Draw an explanation: the frames with a heat map over each, red for what speaks for the score, and a curve."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from peft_aim.files import write_atomically
from peft_aim.video.attribution.explanation import Explanation
from peft_aim.video.fonts import fonts_for
from peft_aim.video.metrics import printable

OPACITY = 0.8  # of the greatest attribution
GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def draw(path: Path, images: Tensor, found: Explanation, index: int) -> None:
    """Draw an explanation.

    Args:
        path: The image file to write.
        images: The frames, ``(T, H, W, 3)`` in [0, 1].
        found: The explanation.
        index: Index of the class, drawn in place of its name if no installed font has that.
    """
    figure = Figure(figsize=(max(5.0, 1.3 * len(images)), 3.4), layout="constrained")
    with fonts_for([found.label]) as can_be_drawn:
        strip, below = figure.subfigures(2, 1, height_ratios=[1.0, 1.1])
        name = printable(found.label) if can_be_drawn else f"class {index}"
        strip.suptitle(f"{name}  {found.shown(found.value)}", parse_math=False)
        _draw_frames(strip.subplots(1, len(images), squeeze=False)[0], images, found)
        _draw_curve(below.subplots(), found)
        write_atomically(path, partial(figure.savefig, dpi=110))


def _draw_frames(grid: Sequence[Axes], images: Tensor, found: Explanation) -> None:
    """Draw each frame in gray, with its attributions and its time."""
    most = float(found.attributions.abs().max()) or 1.0
    heat = F.interpolate(found.attributions[:, None], images.shape[1:3], mode="bilinear")[:, 0] / most
    for axes, image, over, seconds in zip(grid, images, heat, found.seconds, strict=True):
        axes.imshow((image @ torch.tensor(GRAY)).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.imshow(_colored(over))
        axes.set_title(f"{seconds:.2f} s", fontsize="small")
        axes.axis("off")


def _draw_curve(axes: Axes, found: Explanation) -> None:
    """Draw what speaks for the score and against it in each frame."""
    for name, sign, color in (("for it", 1, "tab:red"), ("against it", -1, "tab:blue")):
        parts = (sign * found.attributions).clamp(min=0).sum((1, 2))
        axes.plot(found.seconds, parts.numpy(), marker="o", color=color, label=name)
    axes.set(xlabel="time in seconds", ylabel="attribution", ylim=(0, None))
    axes.set_title(found.verdict, fontsize="small")
    axes.legend(fontsize="small")


def _colored(heat: Tensor) -> np.ndarray:
    """Return red for positive and blue for negative values, more opaque for greater ones, ``(H, W) -> (H, W, 4)``."""
    return torch.stack([(heat > 0).float(), 0 * heat, (heat < 0).float(), OPACITY * heat.abs()], -1).numpy()
