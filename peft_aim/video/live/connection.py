"""The frames of an open source and their times, as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import av
from torch import Tensor

from peft_aim.video.data.decode import Damage, Pictures, decoded_packets, elapsed, is_hdr, may_restart, usual_step


class Connection:
    """An open source.

    Args:
        stream: Its video stream.

    Attributes:
        rate: Frames per second, as far as FFmpeg knows.
        is_recording: Whether it has an end that is known from the start.
        is_hdr: Whether it is in HDR.
    """

    def __init__(self, stream: av.VideoStream) -> None:
        self._stream = stream
        self.rate = float(1 / usual_step(stream))
        self.is_recording = has_an_end(stream.container)
        self.is_hdr = is_hdr(stream)

    def frames(self, damage: Damage) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yield the frames with their seconds since the first, ascending, without those that cannot be decoded.

        Args:
            damage: Failures are noted here.

        Raises:
            av.error.FFmpegError: If the source breaks off.
        """
        stream, seconds, before = self._stream, Fraction(0), None
        clock = (stream.time_base, usual_step(stream), may_restart(stream))
        for packet in stream.container.demux(stream):
            errors = damage.errors
            for frame in decoded_packets([packet], damage):
                seconds += elapsed(before.pts, frame.pts, *clock) if before else 0
                before = frame
                yield float(seconds), frame
            if packet.is_corrupt and damage.errors == errors:
                damage.note("parts of it are missing", f"at {float(seconds):.2f} s")


def has_an_end(container: av.container.InputContainer) -> bool:
    """Return whether a video is known to end: its length is, or the size of its file, which is not a playlist."""
    is_playlist = container.format.flags & av.format.Flags.no_byte_seek.value
    return container.duration is not None or (container.size > 0 and not is_playlist)


class SizedPictures:
    """Turn frames into upright pictures, each in its own size.

    Args:
        say: Called with what to tell the user when the size changes.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._size = say, None
        self._pictures: Pictures | None = None

    def of(self, frame: av.VideoFrame) -> Tensor:
        """Return a frame as uint8 RGB ``(3, H, W)``."""
        size = (frame.width, frame.height)
        if size != self._size:
            if self._size is not None:
                was, now = (f"{width} x {height}" for width, height in (self._size, size))
                self._say(f"The frames change from {was} to {now} pixels, and are resized for the model as before.")
            self._size, self._pictures = size, Pictures(frame)
        return self._pictures.of(frame)
