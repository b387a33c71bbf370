"""A file that may still be written to while it is read."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from threading import Event

import av

from peft_aim.video.data.decode import ANY_TITLE

PAUSE = 0.05  # seconds between two looks at the end of a file


class GrowingFile:
    """A file that FFmpeg reads to its end, which is where nothing has been written for a while.

    A finished file ends at once, if it was written before that; so no option is needed to follow one that grows.

    Args:
        path: The file.
        patience: Seconds without writing after which the file is finished.
        stop: Set to stop waiting.

    Attributes:
        waits: Whether to wait at the end; not while FFmpeg looks for the last time stamp.
    """

    def __init__(self, path: str, patience: float, stop: Event) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        self._path, self._patience, self._stop, self.waits = path, patience, stop, False

    @classmethod
    def opened(
        cls, path: str, patience: float, stop: Event, say: Callable[[str], None]
    ) -> av.container.InputContainer:
        """Open the container of a file; of one that grows, as soon as it has begun."""
        said = False
        while True:
            file = cls(path, patience, stop)
            try:
                container = av.open(file, **ANY_TITLE)
            except av.error.FFmpegError as error:
                if not file.grows or stop.wait(PAUSE):
                    raise
                if not said:
                    say(f"{path} cannot be read yet ({error.strerror}). Waiting, since it was written to just now.")
                said = True
            else:
                file.waits = True
                return container

    @property
    def grows(self) -> bool:
        """Whether it was written to a short while ago."""
        return time.time() - os.stat(self._path).st_mtime < self._patience

    def read(self, size: int) -> bytes:
        """Read up to so many bytes; b"" at the end."""
        while not (data := self._file.read(size)) and self.waits and self.grows and not self._stop.wait(PAUSE):
            pass
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
