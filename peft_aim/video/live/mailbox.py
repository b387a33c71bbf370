"""What the reading thread passes on to the main thread: a bounded number of frames, and remarks between them."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from threading import Condition

from torch import Tensor

from peft_aim.video.live.events import Remark

ROOM = 2  # frames that wait for a slow model: the next, and the newest
BURST = 64  # frames that wait for a fast one
SMOOTHING = 0.2  # weight of the last frame in the average time that a frame takes


@dataclass(frozen=True, eq=False)
class Taken:
    """A frame that was taken from a source.

    Attributes:
        time: Seconds since the first frame of the source.
        frame: The preprocessed frame, ``(3, H, W)``.
        due: When it should have come, by ``time.monotonic()``, had it not been late.
    """

    time: float
    frame: Tensor
    due: float


@dataclass(frozen=True)
class Ended:
    """The end of a source.

    Attributes:
        error: Why it could not be read any further; None if it was complete.
    """

    error: Exception | None = None


class Closed(Exception):  # noqa: N818 (nothing is wrong)
    """Raised in the reading thread if nobody waits for frames any more."""


class Mailbox:
    """A queue that holds few frames.

    Streams often come in bursts, of a segment in HLS, for which a model that is fast enough on average has time.
    For one that is not, more than a few waiting frames would only put it further behind.

    Args:
        fps: Frames per second that are put into it, in the time of the source.

    Attributes:
        newest_win: Whether a frame that finds no room takes that of the oldest, which is skipped; otherwise it waits.
        skipped: Number of frames skipped.
    """

    def __init__(self, fps: float) -> None:
        self.newest_win, self.skipped = False, 0
        self._items: deque[Taken | Remark | Ended] = deque()
        self._changed, self._closed = Condition(), False
        self._interval, self._busy, self._began = 1 / fps, 0.0, None

    def put(self, item: Taken | Remark | Ended) -> None:
        """Add a frame or a message.

        Raises:
            Closed: If nobody waits for it any more.
        """
        with self._changed:
            if isinstance(item, Taken):
                self._make_room()
            if self._closed:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self, timeout: float) -> Taken | Remark | Ended | None:
        """Remove the first item and return it; None if there is none within ``timeout`` seconds."""
        with self._changed:
            if self._began is not None:
                self._busy += SMOOTHING * (time.monotonic() - self._began - self._busy)
            self._changed.wait_for(lambda: self._items, timeout)
            item = self._items.popleft() if self._items else None
            self._began = time.monotonic() if isinstance(item, Taken) else None
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Take no more items."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def _make_room(self) -> None:
        if not self.newest_win:
            self._changed.wait_for(lambda: self._closed or self._frames < ROOM)
            return
        room = BURST if self._busy < self._interval else ROOM
        while self._frames >= room:
            self._items.remove(next(item for item in self._items if isinstance(item, Taken)))
            self.skipped += 1

    @property
    def _frames(self) -> int:
        return sum(isinstance(item, Taken) for item in self._items)
