"""Frame sampling: which frames of a video make up a clip."""

from __future__ import annotations

from bisect import bisect_left

import torch


def training_frames(count: int, frames: int, stride: int | None) -> list[int]:
    """Sample the frames of a training clip at random.

    Args:
        count: Number of frames of the video.
        frames: Number of frames T of the clip.
        stride: Distance between the frames, from a random start; None samples a random frame from each of T equal
            segments.

    Returns:
        T frame indices. A video that is too short is looped (with a stride) or repeats frames (with segments).

    Example:
        >>> training_frames(5, 4, stride=2)
        [0, 2, 4, 1]
    """
    if stride is None:
        return _of_segments(count, torch.rand(frames).tolist())
    return _strided(int(torch.randint(_starts(count, frames, stride), ())), count, frames, stride)


def evaluation_frames(count: int, frames: int, stride: int | None, clips: int = 1) -> list[list[int]]:
    """Return the frames of one or several evaluation clips, without randomness.

    With a stride, the K clips start at the centers of K equal intervals of the possible starts. With segments, each
    segment is split into K parts, and clip k takes the center of the k-th part of each segment.

    Args:
        count: Number of frames of the video.
        frames: Number of frames T per clip.
        stride: Distance between the frames of a clip; None samples one from each of T equal segments.
        clips: Number of clips K.

    Returns:
        K lists of T frame indices. A video that is too short is looped (with a stride) or repeats frames (with
        segments).

    Example:
        >>> evaluation_frames(20, 4, stride=4)
        [[4, 8, 12, 16]]
        >>> evaluation_frames(20, 4, stride=4, clips=2)
        [[2, 6, 10, 14], [6, 10, 14, 18]]
        >>> evaluation_frames(16, 4, stride=None)
        [[2, 6, 10, 14]]
    """
    centers = [(k + 0.5) / clips for k in range(clips)]
    if stride is None:
        return [_of_segments(count, [center] * frames) for center in centers]
    starts = [int(center * _starts(count, frames, stride)) for center in centers]
    return [_strided(start, count, frames, stride) for start in starts]


def windows(seconds: list[float], length: float) -> list[range]:
    """Split a long video into windows that overlap by half.

    Args:
        seconds: Presentation time of each frame, ascending.
        length: Length of a window in seconds.

    Returns:
        The frame indices of each window, which spans about ``length`` seconds; a single window with all frames if the
        video is not much longer than that.

    Example:
        >>> windows([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], length=3.0)
        [range(0, 3), range(2, 5), range(3, 6)]
    """
    begin, end = seconds[0], seconds[-1] + (seconds[-1] - seconds[0]) / max(1, len(seconds) - 1)
    count = max(1, round(2 * (end - begin) / length) - 1)
    if count == 1:
        return [range(len(seconds))]
    step = (end - begin - length) / (count - 1)
    found = []
    for k in range(count):
        start = begin + k * step
        inside = range(*(bisect_left(seconds, when - 1e-6) for when in (start, start + length)))
        if inside:
            found.append(inside)
    return found


def _starts(count: int, frames: int, stride: int) -> int:
    """Return the number of frames at which a clip can start."""
    return max(1, count - (frames - 1) * stride)


def _strided(start: int, count: int, frames: int, stride: int) -> list[int]:
    return [(start + i * stride) % count for i in range(frames)]


def _of_segments(count: int, offsets: list[float]) -> list[int]:
    """Return the frame at a relative offset in [0, 1) of each segment."""
    return [min(count - 1, int((i + offset) * count / len(offsets))) for i, offset in enumerate(offsets)]
