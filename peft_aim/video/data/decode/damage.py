"""How much of a video cannot be decoded, where, and why."""

from __future__ import annotations

from os import PathLike

TOLERATED = 1 / 5  # of the frames


class Damage:
    """The frames of a video that could not be decoded so far.

    Args:
        path: The video.

    Attributes:
        lost: Number of frames that could not be decoded.
        wanted: Number of frames that should have been.
        reason: FFmpeg's reason for the first of them, and its position.

    Example:
        >>> damage = Damage("a.mp4")
        >>> damage.wanted = 8
        >>> damage.note("Invalid data found when processing input", "at 2.00 s (byte 45056)")
        >>> damage.lost = 1
        >>> str(damage)
        ''
        >>> damage.lost = 5
        >>> print(damage)
        5 of 8 frames of a.mp4 cannot be decoded, the first at 2.00 s (byte 45056): Invalid data found when processing input.
    """  # noqa: E501

    def __init__(self, path: str | PathLike) -> None:
        self.path, self.lost, self.wanted = path, 0, 0
        self.reason = self.position = ""

    def note(self, reason: str, position: str) -> None:
        """Remember why and where a frame could not be decoded; the first time counts."""
        if not self.reason:
            self.reason, self.position = reason, position

    @property
    def why(self) -> str:
        """The reason for the first frame that could not be decoded, and its position."""
        return f", the first {self.position}: {self.reason}" if self.reason else ""

    def __str__(self) -> str:
        """Describe the damage; "" if a fifth of the frames or fewer are damaged."""
        if self.lost <= TOLERATED * self.wanted:
            return ""
        return f"{self.lost} of {self.wanted} frames of {self.path} cannot be decoded{self.why}."
