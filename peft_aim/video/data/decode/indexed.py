"""Seeking, a speed-up of plain decoding for containers whose packets tell what plain decoding shows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from os import PathLike

import av
from torch import Tensor

from peft_aim.video.data.decode.container import decoded, is_hdr, promised
from peft_aim.video.data.decode.picture import Pictures
from peft_aim.video.data.decode.times import seconds_from
from peft_aim.video.data.decode.video import BrokenVideo, Video

# The containers that store a presentation time for each picture, and the codecs one packet of which is one picture.
# (In VP8, some packets are never shown; in MPEG-4 part 2, one packet may hold two pictures or none.)
CONTAINERS = {"mp4", "matroska"}
CODECS = {"h264", "hevc", "av1", "vp9"}
COMPARED = 2  # frames at the start


class IndexedVideo(Video):
    """A video whose frames are counted by their packets, and found by seeking to the key frame before.

    Use :meth:`of`, which checks that this gives the same as plain decoding.

    Args:
        path: The file.
        stream: The video stream, open.
        times: Presentation time of each frame in the time base of the stream, ascending.
        keys: Those of the key frames, ascending.
    """

    def __init__(self, path: str | PathLike, stream: av.VideoStream, times: list[int], keys: list[int]) -> None:
        super().__init__(path)
        self._stream, self._times, self._keys = stream, times, keys
        self._seek(keys[0])
        self._ahead = list(islice(self._rest, COMPARED))
        self.is_right = [frame.pts for frame in self._ahead] == times[:COMPARED]
        if self.is_right:
            self._pictures = Pictures(self._ahead[0])
            self.size, self.hdr = self._pictures.size, is_hdr(stream)
            self.seconds = seconds_from(times, stream.time_base)

    @classmethod
    def of(cls, path: str | PathLike, stream: av.VideoStream) -> IndexedVideo | None:
        """Index a video; None if it takes plain decoding to know what it shows."""
        formats, codec = set(stream.container.format.name.split(",")), stream.codec_context.codec
        if not formats & CONTAINERS or not (codec.canonical_name in CODECS or codec.intra_only):
            return None
        index = _index(stream)
        video = cls(path, stream, *index) if index else None
        return video if video is not None and video.is_right else None

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield frames one by one, see :meth:`Video.frames`."""
        for i in indices:
            frame = self._shown_at(self._times[i])
            if frame is None:
                raise BrokenVideo(f"None of the frames of {self.path} can be decoded{self.damage.why}.")
            yield i, self._pictures.of(frame)

    def _shown_at(self, time: int) -> av.VideoFrame | None:
        """Return the frame shown at a time: the one of this time or, if that is damaged, the one before."""
        number = bisect_right(self._keys, time) - 1
        if self._keys[number] <= self._reached <= time:
            self._decode_until(time)
        else:
            for key in (self._keys[number], self._keys[max(0, number - 1)], self._keys[0]):
                self._seek(key)
                self._decode_until(time)
                if self._current is not None and self._reached <= time:
                    break  # else the seek has led too far
        frame = self._current if self._before is None or self._current.pts <= time else self._before
        self.damage.wanted += 1
        self.damage.lost += frame is None or frame.pts != time
        return frame

    def _seek(self, key: int) -> None:
        self._stream.container.seek(key, stream=self._stream)
        self._rest = (frame for frame in decoded(self._stream, self.damage) if frame.pts is not None)
        self._ahead: list[av.VideoFrame] = []
        self._before = self._current = None
        self._reached = key

    def _decode_until(self, time: int) -> None:
        """Decode up to the first frame that is not before a time, and keep the one before that as well."""
        while self._current is None or self._current.pts < time:
            following = self._ahead.pop(0) if self._ahead else next(self._rest, None)
            if following is None:
                return
            self._before, self._current = self._current, following
            self._reached = (self._before or self._current).pts


def _index(stream: av.VideoStream) -> tuple[list[int], list[int]] | None:
    """Return the times of the frames and of the key frames, None if some packet raises doubts.

    Packets that an edit list hides are decoded, but not shown.
    """
    times, keys, packets = [], [], 0
    try:
        for packet in stream.container.demux(stream):
            if not packet.size:
                continue
            packets += 1
            if packet.pts is None or packet.is_corrupt or not any(memoryview(packet)[:8]):  # lost parts are zeros
                return None
            if not packet.is_discard:
                times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    except av.error.FFmpegError:
        return None
    times, keys = sorted(times), sorted(keys)
    in_order = all(before < now for before, now in pairwise(times))
    is_clear = packets >= promised(stream) and times and keys and keys[0] <= times[0] and in_order
    return (times, keys) if is_clear else None
