"""At which rate frames are taken from a source, and which."""

from __future__ import annotations

import math

from peft_aim.video.description import Description


def rate_of(description: Description, adapter: str, fps: float | None) -> tuple[float, str]:
    """Return how many frames to take per second, and this in words.

    Args:
        description: Description of the adapter.
        adapter: Its name, for the error message.
        fps: The rate that is wanted; None takes that of the clips that the adapter was trained on.

    Raises:
        ValueError: If no rate is wanted, and that of training is not recorded.
    """
    trained, clip = description.clip_rate, f"the {description.frames} frames of a clip"
    if fps is not None:
        other = "" if trained is None else f" (in training, {trained:.3g})"
        return fps, f"Taking {fps:.3g} frames per second{other}: {clip} are {description.frames / fps:.3g} s."
    if trained is not None:
        length = description.frames / trained
        return trained, f"Taking {trained:.3g} frames per second, as in training: {clip} are {length:.3g} s."
    how = f"{description.frames}, the frames of a clip, divided by the seconds of a typical training video"
    if description.stride is not None:
        how = f"the frame rate of its training videos divided by {description.stride}, the stride"
    raise ValueError(
        f"The adapter {adapter} does not record at which frame rate it was trained: it was converted, or trained by "
        f"an earlier version. Give the frames per second of a clip with --fps (fps in Python): {how}."
    )


class Pace:
    """Take frames at a constant rate: of each moment 0, 1 / fps, 2 / fps, ..., the frame that is nearest.

    Args:
        fps: Frames to take per second; all are taken if the source has no more.
        rate: Frames per second of the source.

    Example:
        >>> pace = Pace(fps=4, rate=10)
        >>> [i for i in range(10) if pace.takes(i / 10)]
        [0, 3, 5, 8]
    """

    def __init__(self, fps: float, rate: float) -> None:
        self._fps, self._early = fps, min(1 / fps, 1 / rate) / 2 - 1e-6  # of two that are as near, the later
        self._moment = -1

    def takes(self, seconds: float) -> bool:
        """Return whether to take a frame, by its time since the first; times ascend."""
        moment = math.floor((seconds + self._early) * self._fps)
        taken, self._moment = moment > self._moment, max(moment, self._moment)
        return taken
