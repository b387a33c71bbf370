"""Other orders of the frames of a clip, which tell whether a model uses their order at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IN_ORDER, SHUFFLED, REVERSED, FROZEN = "in order", "shuffled", "reversed", "frozen"
SHUFFLES = 8


def orders(frames: int) -> dict[str, list[list[int]]]:
    """Return indices of frames: as recorded, shuffled in several ways, reversed, and the middle frame alone.

    Args:
        frames: Number of frames T of the clip; a single frame has no other order.

    Example:
        >>> found = orders(4)
        >>> found["in order"], found["reversed"], found["frozen"], len(found["shuffled"])
        ([[0, 1, 2, 3]], [[3, 2, 1, 0]], [[2, 2, 2, 2]], 8)
    """
    recorded = list(range(frames))
    if frames == 1:
        return {IN_ORDER: [recorded]}
    return {
        IN_ORDER: [recorded],
        SHUFFLED: shuffles(frames),
        REVERSED: [recorded[::-1]],
        FROZEN: [[frames // 2] * frames],
    }


def shuffles(frames: int) -> list[list[int]]:
    """Return :data:`SHUFFLES` orders of the frames, always the same ones, and none of them as recorded.

    Args:
        frames: Number of frames T, at least 2.

    Example:
        >>> shuffles(2)[0], [0, 1, 2] in shuffles(3)
        ([1, 0], False)
    """
    generator, found = torch.Generator().manual_seed(0), []
    while len(found) < SHUFFLES:
        order = torch.randperm(frames, generator=generator).tolist()
        if order != sorted(order):
            found.append(order)
    return found


def reordered(clips: Tensor, numbers: Sequence[int]) -> dict[str, Tensor]:
    """Return clips with their frames shuffled, and reversed; there is no other order of a single frame.

    Args:
        clips: The clips.
        numbers: A number for each clip, which decides how it is shuffled.

    Shape:
        ``(B, T, 3, H, W)`` -> the same by order

    Example:
        >>> clips = torch.arange(3).view(1, 3, 1, 1, 1)
        >>> {order: clip.flatten().tolist() for order, clip in reordered(clips, [0]).items()}
        {'shuffled': [2, 0, 1], 'reversed': [2, 1, 0]}
    """
    frames = clips.shape[1]
    if frames == 1:
        return {}
    chosen = shuffles(frames)
    shuffled = [clip[torch.tensor(chosen[n % SHUFFLES])] for clip, n in zip(clips, numbers, strict=True)]
    return {SHUFFLED: torch.stack(shuffled), REVERSED: clips.flip(1)}
