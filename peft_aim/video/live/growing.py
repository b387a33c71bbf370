"""A file that may still be written to while it is read."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
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
            except (av.error.FFmpegError, NotYet) as error:
                if not self.grows or self._stop.wait(PAUSE):
                    raise
                if not said:
                    reason = getattr(error, "strerror", None) or error
                    say(f"{self._path} cannot be read yet ({reason}); it is still being written to.")
                said = True

    def _opened(self) -> av.container.InputContainer:
        """Open the container; FFmpeg looks for its end if it may seek, and must not wait there."""
        grows, (is_last, is_whole) = self.grows, index_of(self._file)
        if grows and is_last and not is_whole:
            raise NotYet("its index comes last")
        self._seeks = is_last or not grows
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


class NotYet(OSError):  # noqa: N818 (nothing is wrong)
    """Raised for a file that can be read once it is finished."""


def index_of(file: BinaryIO) -> tuple[bool, bool]:
    r"""Return whether a file is MP4 with its index after the pictures, and whether it has all of the index.

    Such files are read by seeking back. In a file that is too short to tell, the index may come last.

    Example:
        >>> index_of(io.BytesIO(b"\0\0\0\x0cftypmp42" + b"\0\0\0\x09mdat." + b"\0\0\0\x08moov"))
        (True, True)
    """
    boxes = dict(_boxes(file))
    first = next((kind for kind in boxes if kind in (b"moov", b"mdat")), b"mdat" if b"ftyp" in boxes else b"")
    return first == b"mdat", boxes.get(b"moov", False)


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yield the kind of each box of an MP4 file, and whether the file has all of the box."""
    end, position = file.seek(0, io.SEEK_END), 0
    while position + 8 <= end:
        file.seek(position)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        position += size if size >= 8 else end  # 0: up to the end, wherever that will be
        yield kind, position <= end
