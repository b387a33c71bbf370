"""What each part of a clip adds to a score, by integrated gradients.

They need nothing but the gradient of the score with respect to the pixels, whatever the model makes of these:
Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", arXiv 1703.01365.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from peft_aim.video.evaluate import scores_of
from peft_aim.video.problem_type import SINGLE_LABEL

STEPS = 16
MOST_CELLS, LEAST_PIXELS = 14, 8  # rows and columns of cells, and their height and width
BLUR = 1 / 8  # standard deviation as a fraction of the shorter side
ROUNDING = 1e-4  # of normalized pixels: 8 bits are about 0.02 apart


def attribute(model: nn.Module, clip: Tensor, index: int, problem_type: str | None = None) -> Tensor:
    """Return what each cell of each frame adds to a score of a model.

    The baseline is the blurred mean frame, which shows neither details nor change. Of one class out of several, the
    score is compared to the mean score of all classes, since softmax ignores what is added to all of them.

    Args:
        model: The model, in evaluation mode.
        clip: The clip, on the device of the model.
        index: Index of the class or number.
        problem_type: What the scores mean, see :func:`peft_aim.video.problem_type.values_of`.

    Shape:
        ``(T, C, H, W) -> (T, h, w)``, see :func:`in_cells`
    """
    return in_cells(integrated_gradients(score_of(model, index, problem_type), clip, blurred(clip)))


def score_of(model: nn.Module, index: int, problem_type: str | None) -> Callable[[Tensor], Tensor]:
    """Return the function of clips ``(B, T, C, H, W)`` whose values ``(B,)`` are explained, see :func:`attribute`."""

    def score(clips: Tensor) -> Tensor:
        scores = scores_of(model(clips)).float()
        is_single = problem_type in (None, SINGLE_LABEL)
        return scores[:, index] - scores.mean(1) if is_single else scores[:, index]

    return score


def blurred(clip: Tensor) -> Tensor:
    """Return a clip whose frames are all the mean frame, blurred beyond recognition, ``(T, C, H, W)``."""
    deviation = BLUR * min(clip.shape[-2:])
    mean = clip.mean(0, keepdim=True)
    found = gaussian_blur(mean, [2 * round(3 * deviation) + 1] * 2, [deviation] * 2)
    return found.where((clip - found).abs() > ROUNDING, clip)


def integrated_gradients(
    score: Callable[[Tensor], Tensor], clip: Tensor, baseline: Tensor, steps: int = STEPS
) -> Tensor:
    """Attribute the difference between the scores of a clip and of a baseline to the pixels of the clip.

    The gradient of the score is averaged along the straight line from the baseline to the clip, and multiplied by
    their difference. So the attributions sum up to the difference of the scores, exactly for a linear model.

    Args:
        score: Maps clips ``(B, T, C, H, W)`` to scores ``(B,)``.
        clip: The clip.
        baseline: A clip that does not show what the score rests on.
        steps: Number of points on the line.

    Shape:
        ``(T, C, H, W)``, ``(T, C, H, W)`` -> ``(T, H, W)``

    Example:
        >>> clip, weight = torch.ones(2, 1, 1, 3), torch.arange(6.0).view(2, 1, 1, 3)
        >>> integrated_gradients(lambda clips: (clips * weight).sum((1, 2, 3, 4)), clip, 0 * clip).tolist()
        [[[0.0, 1.0, 2.0]], [[3.0, 4.0, 5.0]]]
    """
    difference, total = clip - baseline, torch.zeros_like(clip)
    for step in range(steps):
        point = (baseline + (step + 0.5) / steps * difference).requires_grad_()
        with torch.enable_grad():
            total += torch.autograd.grad(score(point[None]).sum(), point)[0]
    return (difference * total / steps).sum(1)


def in_cells(pixels: Tensor) -> Tensor:
    """Sum up pixels in the cells of a grid, of 14 rows and columns, or fewer of 8 pixels in smaller frames.

    Shape:
        ``(T, H, W) -> (T, h, w)``

    Example:
        >>> in_cells(torch.ones(1, 16, 24))
        tensor([[[64., 64., 64.],
                 [64., 64., 64.]]])
    """
    rows, columns = (_membership(side).to(pixels) for side in pixels.shape[1:])
    return rows.T @ pixels @ columns


def _membership(side: int) -> Tensor:
    """Return which of the pixels along a side are in which cell, as 0 or 1, ``(side, cells)``."""
    cells = max(1, min(MOST_CELLS, side // LEAST_PIXELS))
    return F.one_hot(torch.arange(side) * cells // side, cells)
