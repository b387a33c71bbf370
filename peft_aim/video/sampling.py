"""Which frames of a video make a clip."""

from __future__ import annotations

import torch


def one_per_segment(count: int, frames: int, random: bool) -> list[int]:
    """Cut a video into equal segments and take a frame of each.

    Args:
        count: Number of frames of the video.
        frames: Number of frames T of the clip.
        random: Take a random frame of each segment (training), or the one at its centre.

    Returns:
        T frame indices in ascending order; a short video repeats frames.

    Example:
        >>> one_per_segment(16, 4, random=False)
        [2, 6, 10, 14]
        >>> one_per_segment(2, 4, random=False)
        [0, 0, 1, 1]
    """
    offsets = torch.rand(frames) if random else torch.full((frames,), 0.5)
    return [min(count - 1, int((i + offset) * count / frames)) for i, offset in enumerate(offsets.tolist())]


def strided(count: int, frames: int, stride: int, random: bool) -> list[int]:
    """Take frames at a fixed stride, from a random start or from the middle of the video.

    Args:
        count: Number of frames of the video.
        frames: Number of frames T of the clip.
        stride: Distance between them.
        random: Start at random (training), or so that the clip is centred.

    Returns:
        T frame indices; a video that is too short loops.

    Example:
        >>> strided(20, 4, stride=4, random=False)
        [3, 7, 11, 15]
        >>> strided(3, 4, stride=2, random=False)
        [0, 2, 1, 0]
    """
    room = max(0, count - (frames - 1) * stride - 1)
    start = int(torch.randint(room + 1, ())) if random else room // 2
    return [(start + i * stride) % count for i in range(frames)]
