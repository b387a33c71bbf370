"""Find frames by an index, seeking to the key frame before where that saves decoding."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import av

from peft_aim.video.data.decode.container import decoded
from peft_aim.video.data.decode.damage import Damage
from peft_aim.video.data.decode.index import Index


class NotAsIndexed(Exception):  # noqa: N818 (the file is at fault)
    """Raised if decoding shows other frames than the index tells: parts are damaged, or times are wrong."""


class Seeker:
    """A decoder that finds frames in a stream, and compares every frame that it decodes with the index.

    Args:
        stream: The video stream.
        index: Its index.
        damage: Failures are noted here.
    """

    def __init__(self, stream: av.VideoStream, index: Index, damage: Damage) -> None:
        self._stream, self._index, self._damage = stream, index, damage
        self._seek(index.keys[0])

    def frame(self, number: int) -> av.VideoFrame:
        """Return a frame.

        Raises:
            NotAsIndexed: If it is not where the index tells, or frames on the way are not.
        """
        times, keys = self._index.times, self._index.keys
        last = bisect_right(keys, times[number]) - 1  # key frame
        if self._number <= number and keys[last] <= self._reached:
            return self._decode_until(number)
        for key in (keys[last], keys[max(0, last - 1)], keys[0]):
            self._seek(key)
            self._decode_next()
            if self._number <= number:
                return self._decode_until(number)
        raise NotAsIndexed  # all seeks lead too far

    @property
    def _reached(self) -> int:
        """Time of the last frame or, right after seeking, of the key frame sought."""
        return self._key if self._current is None else self._current.pts

    def _seek(self, key: int) -> None:
        self._stream.container.seek(key, stream=self._stream)
        self._rest = decoded(self._stream, self._damage)
        self._key, self._current, self._number = key, None, -1

    def _decode_until(self, number: int) -> av.VideoFrame:
        while self._current is None or self._number < number:
            self._decode_next()
        return self._current

    def _decode_next(self) -> None:
        times, following = self._index.times, next(self._rest, None)
        if following is None or following.pts is None:
            raise NotAsIndexed
        number = bisect_left(times, following.pts) if self._current is None else self._number + 1
        if number == len(times) or times[number] != following.pts:
            raise NotAsIndexed
        self._current, self._number = following, number
