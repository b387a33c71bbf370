"""A segment of a video as a video of its own."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from torch import Tensor

from peft_aim.video.data.decode.damage import TOLERATED, Damage
from peft_aim.video.data.decode.video import BrokenVideo, Video

ROUNDING = 1e-6  # seconds


class Segment(Video):
    """The frames of an open video whose times are in [start, end); only they are decoded, and what leads up to them.

    It has at least one frame, that which is shown at the start. An end after that of the video is moved there, if no
    more than a fifth of the segment is missing.

    Args:
        video: The video.
        start: Start in seconds; None is that of the video.
        end: End in seconds; None is that of the video.

    Raises:
        BrokenVideo: If the start, or more than a fifth of the segment, is after the end of the video.
    """

    def __init__(self, video: Video, start: float | None, end: float | None) -> None:
        self.path, self.size, self.hdr = video.path, video.size, video.hdr
        self._video, self._start, self._end = video, start or 0.0, end
        self._cut()

    @property
    def damage(self) -> Damage:
        """The frames that could not be decoded so far, on the way to the segment, too."""
        return self._video.damage

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield frames one by one, see :meth:`Video.frames`."""
        first = self._first
        for i, frame in self._video.frames([first + i for i in indices]):
            yield i - first, frame
        if self._video.seconds is not self._times:  # corrected: the segment may have other frames
            self._cut()

    def _cut(self) -> None:
        """Find the frames of the segment."""
        self._times = times = self._video.seconds
        length = times[-1] + (times[-1] / (len(times) - 1) if len(times) > 1 else 0.0)  # the last frame lasts, too
        start, end = self._start, self._end
        missing = 0.0 if end is None else max(0.0, end - length)
        if (start and start >= length) or (end is not None and missing > TOLERATED * (end - start)):
            until = "the end" if end is None else f"{end:g} s"
            what = "the segment" if start >= length else "more than a fifth of the segment"
            raise BrokenVideo(
                f"{self.path} lasts {length:.2f} s, but {what} from {start:g} to {until} is after that. Correct start "
                "and end, which are in seconds."
            )
        shown = max(0, bisect_right(times, start + ROUNDING) - 1)  # at the start
        inside = range(*(bisect_left(times, time - ROUNDING) for time in (start, math.inf if end is None else end)))
        inside = inside or range(shown, shown + 1)
        self._first = inside.start
        self.seconds = [times[i] - times[inside.start] for i in inside]
