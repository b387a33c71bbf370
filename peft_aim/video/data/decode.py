"""Open video files with torchcodec, which is faster, if it loads, else with PyAV, which comes with its own FFmpeg."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from os import PathLike
from typing import Any, Protocol

from torch import Tensor

from peft_aim.video.data import pyav
from peft_aim.video.data.pyav import BrokenVideo

__all__ = ["BrokenVideo", "Video", "open_video"]


class Video(Protocol):
    """An open video.

    Attributes:
        seconds: Presentation time of each frame, ascending; the video has ``len(seconds)`` frames.
    """

    seconds: list[float]

    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode some frames, seeking to the key frame before each.

        Args:
            indices: Frame indices, counted from 0, in any order and with repetitions.

        Returns:
            The frames, uint8 RGB ``(len(indices), 3, H, W)``. A damaged frame is replaced by the one before it.

        Raises:
            BrokenVideo: If none of the frames can be decoded.
        """


@contextmanager
def open_video(path: str | PathLike) -> Iterator[Video]:
    """Open a video and find its frames, without decoding them.

    Args:
        path: The video file. A truncated file has the frames that are left.

    Raises:
        BrokenVideo: If it is not a video, or has no frames.
    """
    video = _with_torchcodec(path)
    if video is not None:
        yield video
    else:
        with pyav.opened(path) as video:
            yield video


@cache
def torchcodec() -> Any:
    """Return ``torchcodec.decoders``, None if torchcodec is not installed or finds no FFmpeg."""
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        from torchcodec import decoders

        return decoders
    return None


def _with_torchcodec(path: str | PathLike) -> Video | None:
    """Open a video with torchcodec; None if it is not available or fails, since PyAV reads more damaged files."""
    if torchcodec() is None:
        return None
    with contextlib.suppress(RuntimeError, ValueError, OSError):
        return _OfTorchcodec(path)
    return None


class _OfTorchcodec:
    def __init__(self, path: str | PathLike) -> None:
        self._path = path
        # one thread, since data loaders already run several processes
        self._decoder = torchcodec().VideoDecoder(str(path), num_ffmpeg_threads=1)
        count, rate = len(self._decoder), self._decoder.metadata.average_fps
        if not count or not rate:
            raise ValueError(f"{path} has {count} frames at {rate} frames per second.")
        self.seconds = [i / rate for i in range(count)]

    def read(self, indices: Sequence[int]) -> Tensor:
        try:
            return self._decoder.get_frames_at(list(indices)).data
        except (RuntimeError, IndexError):
            with pyav.opened(self._path) as video:
                last = len(video.seconds) - 1
                return video.read([min(i, last) for i in indices])
