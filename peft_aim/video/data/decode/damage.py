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
        packets: Number of packets read.
        errors: Number of packets that FFmpeg could not decode, or that the file should have and has not.
        reason: FFmpeg's reason for the first failure, and its position.

    Example:
        >>> damage = Damage("a.mp4")
        >>> damage.note("Invalid data found when processing input", "at 2.00 s (byte 4505)")
        >>> damage.lost, damage.wanted = 1, 8
        >>> str(damage)
        ''
        >>> damage.lost = 5
        >>> str(damage)  # doctest: +ELLIPSIS
        '5 of 8 frames of a.mp4 cannot be decoded, the first at 2.00 s (byte 4505): Invalid data found when ... input.'
    """

    def __init__(self, path: str | PathLike) -> None:
        self.path, self.reason = path, ""
        self.lost = self.wanted = self.packets = self.errors = 0

    def note(self, reason: str, position: str, packets: int = 1) -> None:
        """Count packets that cannot be decoded, and remember where and why the first one was."""
        self.errors += packets
        self.reason = self.reason or f"{position}: {reason}"

    @property
    def why(self) -> str:
        """Where and why the first frame could not be decoded."""
        return f", the first {self.reason}" if self.reason else ""

    def __str__(self) -> str:
        """Describe the damage; "" if a fifth of the frames or fewer are damaged."""
        if self.lost <= TOLERATED * self.wanted:
            return ""
        return f"{self.lost} of {self.wanted} frames of {self.path} cannot be decoded{self.why}."
