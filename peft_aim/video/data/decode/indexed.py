"""Seeking, a speed-up of plain decoding for videos whose packets tell what plain decoding shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os import PathLike

import av
from torch import Tensor

from peft_aim.video.data.decode.container import is_hdr
from peft_aim.video.data.decode.damage import Damage
from peft_aim.video.data.decode.index import Index
from peft_aim.video.data.decode.picture import Pictures
from peft_aim.video.data.decode.seeking import Seeker
from peft_aim.video.data.decode.times import seconds_from
from peft_aim.video.data.decode.video import BrokenVideo, Video

COMPARED = 2  # frames at the start


class IndexedVideo(Video):
    """A video whose frames are counted by their packets, and found by seeking.

    Args:
        stream: The video stream, open.
        times: Presentation time of each frame in the time base of the stream, ascending.
        seeker: Decoder of the stream.
        damage: The frames that could not be decoded so far.
    """

    def __init__(self, stream: av.VideoStream, times: list[int], seeker: Seeker, damage: Damage) -> None:
        super().__init__(damage.path)
        self.damage, self._times, self._seeker = damage, times, seeker
        self._pictures = Pictures(*seeker.first(1))
        self.size, self.hdr = self._pictures.size, is_hdr(stream)
        self.seconds = seconds_from(times, stream.time_base)

    @classmethod
    def of(cls, path: str | PathLike, stream: av.VideoStream) -> IndexedVideo | None:
        """Index a video; None if it takes plain decoding to know what it shows.

        Videos may begin with packets that cannot be decoded, or be interlaced, with two packets per frame.
        """
        index, damage = Index.of(stream), Damage(path)
        if index is None:
            return None
        seeker = Seeker(stream, index.keys, damage)
        if [frame.pts for frame in seeker.first(COMPARED)] != index.times[:COMPARED]:
            return None
        return cls(stream, index.times, seeker, damage)

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield frames one by one, see :meth:`Video.frames`."""
        for i in indices:
            frame = self._seeker.shown_at(self._times[i])
            if frame is None:
                raise BrokenVideo(f"Frame {i} of {self.path} and all before it cannot be decoded{self.damage.why}.")
            self.damage.wanted += 1
            self.damage.lost += frame.pts != self._times[i]
            yield i, self._pictures.of(frame)
