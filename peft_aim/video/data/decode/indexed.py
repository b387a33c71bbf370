"""Seeking, a speed-up of plain decoding for videos whose packets tell what plain decoding shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from os import PathLike

import av
from torch import Tensor

from peft_aim.video.data.decode.container import is_hdr
from peft_aim.video.data.decode.index import Index
from peft_aim.video.data.decode.picture import Pictures
from peft_aim.video.data.decode.plain import PlainVideo
from peft_aim.video.data.decode.seeking import NotAsIndexed, Seeker
from peft_aim.video.data.decode.times import seconds_from
from peft_aim.video.data.decode.video import Video


class IndexedVideo(Video):
    """A video whose frames are counted by their packets and found by seeking, as long as that shows what it should.

    At the first frame that is not as indexed, plain decoding takes over.

    Args:
        path: The file.
        stream: The video stream, open.
        index: Its index.

    Raises:
        NotAsIndexed: If the first two frames are not: videos may begin with packets that cannot be decoded, or be
            interlaced, with two packets per frame.
    """

    def __init__(self, path: str | PathLike, stream: av.VideoStream, index: Index) -> None:
        super().__init__(path)
        self._plain: PlainVideo | None = None
        self._seeker = Seeker(stream, index, self.damage)
        self._first = [self._seeker.frame(i) for i in range(min(2, len(index.times)))]
        self._pictures = Pictures(self._first[0])
        self.size, self.hdr = self._pictures.size, is_hdr(stream)
        self.seconds = seconds_from(index.times, stream.time_base)

    @classmethod
    def of(cls, path: str | PathLike, stream: av.VideoStream) -> IndexedVideo | None:
        """Index a video; None if it takes plain decoding to know what it shows."""
        index = Index.of(stream)
        with suppress(NotAsIndexed):
            return index and cls(path, stream, index)
        return None

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield frames one by one, see :meth:`Video.frames`."""
        indices, done = list(indices), 0
        while done < len(indices) and (frame := self._frame(indices[done])) is not None:
            yield indices[done], self._pictures.of(frame)
            done += 1
        if self._plain is not None:
            yield from self._plainly(indices[done:])

    def _plainly(self, indices: list[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield frames as plain decoding shows them; those beyond the end are the last."""
        last, number = len(self.seconds) - 1, -1
        shown = self._plain.frames(sorted({min(i, last) for i in indices}))
        for i in indices:
            while number < min(i, last):
                number, picture = next(shown)
            yield i, picture

    def _frame(self, number: int) -> av.VideoFrame | None:
        """Return a frame, None once plain decoding has taken over."""
        if self._plain is None:
            try:
                return self._first[number] if number < len(self._first) else self._seeker.frame(number)
            except NotAsIndexed:
                self._plain = PlainVideo(self.path)
                self.seconds, self.damage = self._plain.seconds, self._plain.damage
        return None
