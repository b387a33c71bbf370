"""Draw an explanation: the frames with a heat map over each, and the share of each frame over time."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from peft_aim.files import write_atomically
from peft_aim.video.attribution.explanation import Explanation
from peft_aim.video.fonts import fonts_for
from peft_aim.video.metrics import printable

GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def draw(path: Path, images: Tensor, found: Explanation, index: int) -> None:
    """Draw an explanation.

    Args:
        path: The image file to write.
        images: The frames, ``(T, H, W, 3)`` in [0, 1].
        found: The explanation.
        index: Index of the class, drawn in place of its name if no installed font has that.
    """
    count = len(images)
    figure = Figure(figsize=(max(5.0, 1.3 * count), 3.4), layout="constrained")
    with fonts_for([found.label]) as can_be_drawn:
        strip, below = figure.subfigures(2, 1, height_ratios=[1.0, 1.1])
        most = float(found.attributions.abs().max()) or 1.0
        heat = F.interpolate(found.attributions[:, None], images.shape[1:3], mode="bilinear")[:, 0] / most
        for axis, image, over, seconds in zip(
            strip.subplots(1, count, squeeze=False)[0], images, heat, found.seconds, strict=True
        ):
            gray = sum(weight * channel for weight, channel in zip(GRAY, image.unbind(-1), strict=True))
            axis.imshow(gray.numpy(), cmap="gray", vmin=0, vmax=1)
            axis.imshow(over.numpy(), cmap="bwr", vmin=-1, vmax=1, alpha=0.8 * over.abs().sqrt().clamp(max=1).numpy())
            axis.set_title(f"{seconds:.2f} s", fontsize="small")
            axis.axis("off")
        name = printable(found.label) if can_be_drawn else f"class {index}"
        strip.suptitle(f"{name}  {found.shown(found.value)}", parse_math=False)
        axes = below.subplots()
        axes.plot(found.seconds, found.attributions.sum((1, 2)).numpy(), marker="o", color="tab:red")
        axes.axhline(0, color="gray", linewidth=0.8)
        axes.set(xlabel="time in seconds", ylabel="attribution")
        axes.set_title(found.verdict, fontsize="small")
        write_atomically(path, partial(figure.savefig, dpi=110))
