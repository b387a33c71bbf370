"""Checks of an exported file: the same values as the model's, on noise and on videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from peft_aim.video.data import IGNORED, EvaluationClips, Sample
from peft_aim.video.description import Description
from peft_aim.video.problem_type import SINGLE_LABEL

Run = Callable[[Tensor], Tensor]  # uint8 (B, T, H, W, 3) -> (B, classes)
LIMITS = {"fp32": 1e-4, "fp16": 2e-2}  # int8 has none: what it costs depends on the data


class Differs(ValueError):  # noqa: N818 (not an error of the user)
    """Raised if a file gives other values than the model."""


@torch.no_grad()
def largest_difference(run: Run, model: Run, shapes: Sequence[tuple[int, ...]], relative: bool = False) -> float:
    """Return the largest difference between what a file and a model give for noise.

    Args:
        run: Runs the file.
        model: The model.
        shapes: Shapes of the noise, ``(B, T, H, W, 3)``.
        relative: Whether to divide it by the largest number that the model gives.

    Example:
        >>> largest_difference(lambda x: x.sum((1, 2, 3)) + 1, lambda x: x.sum((1, 2, 3)), [(2, 4, 8, 8, 3)])
        1.0
    """
    generator, found = torch.Generator().manual_seed(0), 0.0
    for shape in shapes:
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        expected, values = model(noise), run(noise)
        if expected.shape != values.shape or not values.isfinite().all():
            raise Differs(
                f"For frames {shape}, it gives values {tuple(values.shape)}, of which "
                f"{int((~values.isfinite()).sum())} are NaN or infinite; the model gives {tuple(expected.shape)}"
            )
        scale = float(expected.abs().max()) if relative else 1.0
        found = max(found, float((expected - values).abs().max()) / (scale or 1.0))
    return found


@dataclass(frozen=True)
class OnVideos:
    """What a file predicts for videos, compared with the model.

    Attributes:
        videos: Number of videos.
        difference: Largest difference of a value.
        differing: Number of videos for which the most probable class differs; None for other problem types.
        top1: Top-1 accuracy of the model and of the file; None for other problem types.
    """

    videos: int
    difference: float
    differing: int | None = None
    top1: tuple[float, float] | None = None

    def __str__(self) -> str:
        difference = f"largest difference {self.difference:.1e}"
        if self.top1 is None:
            return f"{self.videos} videos: {difference}"
        before, after = self.top1
        return (
            f"{self.videos} videos: top-1 {before:.1%} before and {after:.1%} after the export, {self.differing} "
            f"predictions differ, {difference}"
        )


@torch.no_grad()
def on_videos(
    run: Run, model: Run, description: Description, videos: Sequence[Sample], min_frames: int = 1
) -> OnVideos:
    """Compare a file with the model on videos, with the views of evaluation.

    Args:
        run: Runs the file.
        model: The model.
        description: Description of the adapter.
        videos: The videos, see :func:`peft_aim.video.data.indexed`.
        min_frames: Videos with fewer frames are left out.

    Raises:
        ValueError: If none of the videos can be read.
    """
    plain = replace(description.preprocessing, mean=(0.0,) * 3, std=(1.0,) * 3)
    views = replace(description, preprocessing=plain).as_evaluated
    labels, rows = [], []
    for sample in tqdm(EvaluationClips(videos, views, min_frames, description.fps), "Comparing", leave=False):
        if sample["labels"] == IGNORED:
            continue
        pixels = sample["clips"][: views.count].mul(255).round().to(torch.uint8)  # as they were: exactly
        frames = pixels.permute(0, 1, 3, 4, 2).contiguous()
        rows.append(torch.stack([model(frames).mean(0), run(frames).mean(0)]))
        labels.append(sample["labels"])
    if not rows:
        raise ValueError(f"None of the {len(videos)} videos can be read. Give others, or leave them out.")
    values = torch.stack(rows, 1)  # (2, videos, classes)
    difference = float((values[0] - values[1]).abs().max())
    if description.problem_type not in (None, SINGLE_LABEL):
        return OnVideos(len(rows), difference)
    guesses, truth = values.argmax(-1), torch.tensor(labels)
    before, after = (guesses == truth).float().mean(1).tolist()
    return OnVideos(len(rows), difference, int((guesses[0] != guesses[1]).sum()), (before, after))
