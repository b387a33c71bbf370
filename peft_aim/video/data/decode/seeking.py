"""Find frames by their times, seeking to the key frame before where that saves decoding."""

from __future__ import annotations

from bisect import bisect_right
from itertools import islice

import av

from peft_aim.video.data.decode.container import decoded
from peft_aim.video.data.decode.damage import Damage


class Seeker:
    """A decoder that stands somewhere in a stream.

    Args:
        stream: The video stream.
        keys: Times of the key frames in the time base of the stream, ascending.
        damage: Failures are noted here.
    """

    def __init__(self, stream: av.VideoStream, keys: list[int], damage: Damage) -> None:
        self._stream, self._keys, self._damage = stream, keys, damage
        self._seek(keys[0])

    def first(self, count: int) -> list[av.VideoFrame]:
        """Return the first frames of a stream that was just opened; they are not decoded again."""
        self._ahead += islice(self._rest, max(0, count - len(self._ahead)))
        return self._ahead[:count]

    def shown_at(self, time: int) -> av.VideoFrame | None:
        """Return the frame shown at a time: the one of this time or, if that is damaged, the one before.

        The result is None if neither can be decoded.
        """
        number = bisect_right(self._keys, time) - 1
        if self._leads_to(time, self._keys[number]):
            self._decode_until(time)
        else:
            for key in (self._keys[number], self._keys[max(0, number - 1)], self._keys[0]):
                self._seek(key)
                self._decode_until(time)
                if self._current is not None and self._span[0] <= time:
                    break  # else the seek has led too far
        is_late = self._current is not None and self._current.pts > time
        return self._before if is_late and self._before is not None else self._current

    @property
    def _span(self) -> tuple[int, int]:
        """Times of the two frames between which the decoder stands: no other between them can be decoded."""
        after = self._start if self._current is None else self._current.pts
        return (after if self._before is None else self._before.pts), after

    def _leads_to(self, time: int, key: int) -> bool:
        """Whether decoding on leads to a time, with no later key frame to begin at."""
        before, after = self._span
        return before <= time and (time <= after or key <= after or self._has_ended)

    def _seek(self, key: int) -> None:
        self._stream.container.seek(key, stream=self._stream)
        self._rest = (frame for frame in decoded(self._stream, self._damage) if frame.pts is not None)
        self._ahead: list[av.VideoFrame] = []
        self._before = self._current = None
        self._start, self._has_ended = key, False

    def _decode_until(self, time: int) -> None:
        """Decode up to the first frame that is not before a time, and keep the one before that as well."""
        while self._current is None or self._current.pts < time:
            following = self._ahead.pop(0) if self._ahead else next(self._rest, None)
            if following is None:
                self._has_ended = True
                return
            self._before, self._current = self._current, following
