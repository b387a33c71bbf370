"""A file that may still be written to while it is read."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from threading import Event
from typing import BinaryIO

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
    """

    def __init__(self, path: str, patience: float, stop: Event) -> None:
        self._file = io.FileIO(path)
        self._path, self._patience, self._stop = path, patience, stop
        self._waits, self._seeks = False, True

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
                return self._opened()
            except av.error.FFmpegError as error:
                if not self.grows or self._stop.wait(PAUSE):
                    raise
                if not said:
                    say(f"{self._path} cannot be read yet ({error.strerror}); it is still being written to.")
                said = True

    def _opened(self) -> av.container.InputContainer:
        """Open the container; FFmpeg looks for its end if it may seek, and must not wait there."""
        self.seek(0)
        self._seeks = has_index_at_the_end(self._file) or not self.grows
        self._waits = not self._seeks
        self.seek(0)
        container = av.open(self, **ANY_TITLE)
        self._waits = True
        return container

    @property
    def grows(self) -> bool:
        """Whether it was written to a short while ago."""
        return time.time() - os.fstat(self._file.fileno()).st_mtime < self._patience

    def read(self, size: int) -> bytes:
        """Read up to so many bytes; b"" at the end."""
        while not (data := self._file.read(size)) and self._waits and self.grows and not self._stop.wait(PAUSE):
            pass
        return data

    def seekable(self) -> bool:
        """Whether FFmpeg may seek."""
        return self._seeks

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def has_index_at_the_end(file: BinaryIO) -> bool:
    r"""Return whether a file is MP4 with its index after the pictures, which are read by seeking back.

    Example:
        >>> has_index_at_the_end(io.BytesIO(b"\0\0\0\x0cftypmp42" + b"\0\0\0\x09mdat." + b"\0\0\0\x08moov"))
        True
    """
    kind = b"ftyp"
    while kind in (b"ftyp", b"free", b"skip", b"wide", b"uuid"):
        head = file.read(8)
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        file.seek(max(0, size - 8), io.SEEK_CUR)
    return kind in (b"mdat", b"")  # also if the file is too short to tell
