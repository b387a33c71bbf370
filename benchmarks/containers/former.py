"""The reader of peft_aim before it compared seeking with plain decoding, as the reference of the speed of today's."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike

import av
import numpy as np
import torch
from torch import Tensor

from peft_aim.video.data import BrokenVideo

# Titles may have any encoding; from PyAV 19 on, they are always read.
ANY_TITLE = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@contextmanager
def opened(path: str | PathLike) -> Iterator[OfPyAV]:
    """Open a video.

    Raises:
        BrokenVideo: If it has no video stream, or FFmpeg raises any error.
    """
    try:
        with av.open(str(path), **ANY_TITLE) as container:
            if not container.streams.video:
                raise BrokenVideo(f"{path} has no video stream.")
            yield OfPyAV(path, container.streams.video[0])
    except av.error.FFmpegError as error:
        raise BrokenVideo(f"{path} cannot be read as a video: {error.strerror or error}.") from error


class OfPyAV:
    """An open video, see ``peft_aim.video.data.Video``; its packets are indexed without decoding them.

    Args:
        path: The file, for error messages.
        stream: The video stream of the file.
    """

    def __init__(self, path: str | PathLike, stream: av.VideoStream) -> None:
        self._path, self._stream = path, stream
        stream.thread_type = "NONE"  # data loaders already run several processes
        packets = [(_time(packet), packet.is_keyframe) for packet in stream.container.demux(stream) if packet.size]
        self._times = sorted(time for time, _ in packets if time is not None)
        if not self._times:
            raise BrokenVideo(f"{path} has no video frames.")
        self._keys = sorted(time for time, is_key in packets if is_key and time is not None)
        self.seconds = [float((time - self._times[0]) * stream.time_base) for time in self._times]

    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode some frames, uint8 RGB ``(len(indices), 3, H, W)``."""
        wanted = sorted({self._times[i] for i in indices})
        decoded = dict(self._decode(wanted))
        if not decoded:
            raise BrokenVideo(f"None of the frames {list(indices)} of {self._path} can be decoded.")
        times = sorted(decoded)
        images = [decoded[times[max(0, bisect_right(times, self._times[i]) - 1)]] for i in indices]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the frame shown at each of the times, seeking to a later key frame if that saves decoding."""
        before = current = None
        frames, size = iter(()), {}
        reformatter = (
            av.video.reformatter.VideoReformatter()
        )  # shared by all frames, since creating it costs more than decoding
        for time in wanted:
            key = self._keys[max(0, bisect_right(self._keys, time) - 1)] if self._keys else self._times[0]
            if current is None or key > _time(current):
                self._stream.container.seek(key, stream=self._stream)
                before, current, frames = current, None, _tolerant(self._stream)
            while current is None or _time(current) < time:
                following = next(frames, None)
                if following is None:
                    break
                before, current = current or before, following
            on_time = current is not None and _time(current) <= time
            frame = current if on_time or before is None else before  # the frame at this time may be damaged
            if frame is not None:
                size = size or {"width": frame.width, "height": frame.height}  # some videos change their size midway
                image = reformatter.reformat(frame, format="rgb24", **size).to_ndarray()
                yield time, _upright(image, getattr(frame, "rotation", 0))


def _time(of: av.Packet | av.VideoFrame) -> int | None:
    """Return the presentation time in the time base of the stream; old containers only have the decoding time."""
    return of.dts if of.pts is None else of.pts


def _tolerant(stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Decode the frames in order, skipping damaged packets."""
    for packet in stream.container.demux(stream):
        with contextlib.suppress(av.error.InvalidDataError):
            yield from (frame for frame in packet.decode() if _time(frame) is not None)


def _upright(image: np.ndarray, rotation: float) -> np.ndarray:
    """Rotate an image upright: phones record sideways and store the rotation in degrees."""
    return np.rot90(image, k=round(rotation / 90))
