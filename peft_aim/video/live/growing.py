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
        self._file = io.FileIO(path)
        self._path, self._patience, self._stop, self.waits = path, patience, stop, False

    def container(self, say: Callable[[str], None]) -> av.container.InputContainer:
        """Open the container in the file; if it grows, as soon as it has begun.

        Args:
            say: Called with what to tell the user.

        Raises:
            av.error.FFmpegError: If it is not a video.
        """
        said = False
        while True:
            try:
                container = av.open(self, **ANY_TITLE)
            except av.error.FFmpegError as error:
                if not self.grows or self._stop.wait(PAUSE):
                    raise
                if not said:
                    say(f"{self._path} cannot be read yet ({error.strerror}); it is still being written to.")
                said = True
                self.seek(0)
            else:
                self.waits = True
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
