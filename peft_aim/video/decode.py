"""Reads single frames of video files with PyAV, which brings its own FFmpeg."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike

import av
import numpy as np
import torch
from torch import Tensor


class BrokenVideo(ValueError):  # noqa: N818 (it is the video that is broken)
    """Raised for a file that is no video, or holds no frame that can be decoded."""


@dataclass(frozen=True)
class FrameIndex:
    """Where the frames of a video are.

    Attributes:
        times: Presentation times of all frames in ascending order, in the stream's own unit.
        keys: Those of the frames at which decoding can start.
    """

    times: tuple[int, ...]
    keys: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.times)


def index_frames(path: str | PathLike) -> FrameIndex:
    """Find the frames of a video by reading its packets, without decoding them.

    Args:
        path: The video file. Of a truncated one, the frames that are there are found.

    Raises:
        BrokenVideo: If there is no frame in it.
    """
    with _opened(path) as stream:
        packets = [(packet.pts, packet.is_keyframe) for packet in stream.container.demux(stream) if packet.size]
    times = sorted(time for time, _ in packets if time is not None)
    if not times:
        raise BrokenVideo(f"{path} holds no video frames.")
    return FrameIndex(tuple(times), tuple(sorted(time for time, is_key in packets if is_key and time is not None)))


def read_frames(path: str | PathLike, indices: Sequence[int], index: FrameIndex | None = None) -> Tensor:
    """Decode some frames of a video, seeking to the key frame before each.

    Args:
        path: The video file.
        indices: Which frames, counted from 0, in any order and as often as wanted.
        index: Where its frames are, if that is known already.

    Returns:
        The frames, uint8 RGB. A frame that cannot be decoded is replaced by the one before it.

    Shape:
        ``(len(indices), 3, H, W)``

    Raises:
        BrokenVideo: If nothing can be decoded.
    """
    index = index or index_frames(path)
    wanted = sorted({index.times[i] for i in indices})
    with _opened(path) as stream:
        decoded = dict(_decode(stream, wanted, index.keys))
    if not decoded:
        raise BrokenVideo(f"None of the frames {list(indices)} of {path} can be decoded.")
    times = sorted(decoded)
    images = [decoded[times[max(0, bisect_right(times, index.times[i]) - 1)]] for i in indices]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _decode(stream: av.VideoStream, wanted: list[int], keys: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the times and images of the wanted frames, skipping to a later key frame where that saves decoding."""
    position, frames = None, iter(())
    reformatter = av.video.reformatter.VideoReformatter()  # one for all frames: making it costs more than decoding
    for time in wanted:
        key = keys[max(0, bisect_right(keys, time) - 1)] if keys else 0
        if position is None or key > position:
            stream.container.seek(key, stream=stream)
            frames = _tolerant(stream)
        for frame in frames:
            position = frame.pts
            if position is not None and position >= time:
                image = reformatter.reformat(frame, format="rgb24").to_ndarray()
                yield time, _upright(image, getattr(frame, "rotation", 0))
                break


def _tolerant(stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Decode frame after frame, leaving out packets that are damaged."""
    for packet in stream.container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue


def _upright(image: np.ndarray, rotation: float) -> np.ndarray:
    """Turn an image as it is meant to be seen: phones record on the side and note by how many degrees."""
    return np.rot90(image, k=round(rotation / 90))


@contextmanager
def _opened(path: str | PathLike) -> Iterator[av.VideoStream]:
    """Open a file's video stream; whatever FFmpeg has against it becomes a BrokenVideo."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BrokenVideo(f"{path} has no video in it.")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # data loaders run several processes already
            yield stream
    except av.error.FFmpegError as error:
        raise BrokenVideo(f"{path} cannot be read as a video: {error.strerror or error}.") from error
