"""A labeled video, or a labeled segment of one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

# As listed: one text or several; then the index of a class, those of several classes, or numbers.
Label = str | tuple[str, ...] | int | frozenset[int] | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A labeled video or segment.

    Attributes:
        path: The video file or folder of frames.
        label: As listed, a text, or several texts as a tuple. Once :func:`peft_aim.video.data.indexed`, the index of
            the class; the set of the indices of several classes; or a tuple of numbers.
        start: Start of the segment in seconds; None is that of the video.
        end: End of the segment in seconds, which is not part of it; None is that of the video.

    Example:
        >>> print(Sample(Path("a.mp4"), "run"), "and", Sample(Path("a.mp4"), "run", 1.5, 4))
        a.mp4 and a.mp4 (1.5 to 4 s)
    """

    path: Path
    label: Label
    start: float | None = None
    end: float | None = None

    @property
    def is_segment(self) -> bool:
        """Whether it is a part of the video."""
        return self.start is not None or self.end is not None

    def overlaps(self, other: Sample) -> bool:
        """Return whether two segments of one video overlap.

        Example:
            >>> first = Sample(Path("a.mp4"), "run", 0, 2)
            >>> [first.overlaps(Sample(Path("a.mp4"), "run", *times)) for times in ((1, 3), (2, 3), ())]
            [True, False, True]
        """
        return _end(self) > (other.start or 0.0) and _end(other) > (self.start or 0.0)

    def __str__(self) -> str:
        if not self.is_segment:
            return str(self.path)
        end = "the end" if self.end is None else f"{self.end:g} s"
        return f"{self.path} ({self.start or 0:g} to {end})"


def _end(sample: Sample) -> float:
    return math.inf if sample.end is None else sample.end
