"""Take frames from a source at a constant rate, whatever its connections, and keep count of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

from torch import Tensor

from peft_aim.video.data import Remarks
from peft_aim.video.data.decode import Damage
from peft_aim.video.live.connection import Connection, SizedPictures
from peft_aim.video.live.events import Remark
from peft_aim.video.live.mailbox import Mailbox, Taken
from peft_aim.video.live.pace import Pace


@dataclass
class Counts:
    """What was read of a source so far.

    Attributes:
        seconds: Time of the last frame, in seconds since the first.
        seen: Number of frames decoded.
        taken: Number of frames taken.
        reconnections: How often the source was opened again.
        lost: Seconds for which no frames came, as it had to be opened again.
        damage: The packets that could not be decoded.
    """

    damage: Damage
    seconds: float = 0.0
    seen: int = 0
    taken: int = 0
    reconnections: int = 0
    lost: float = 0.0


class Taker:
    """Take frames at a constant rate, preprocess them and put them into a mailbox.

    Args:
        name: Name of the source, for messages.
        mailbox: Where to put the frames.
        prepare: Preprocessing of a picture, uint8 ``(3, H', W') -> (3, H, W)``.
        fps: Frames to take per second.

    Attributes:
        counts: What was read so far.
        latest: When the last frame came, by ``time.monotonic()``.
    """

    def __init__(self, name: str, mailbox: Mailbox, prepare: Callable[[Tensor], Tensor], fps: float) -> None:
        self._name, self._mailbox, self._prepare, self._fps = name, mailbox, prepare, fps
        self.counts, self.latest = Counts(Damage(name)), -math.inf
        self._pictures = SizedPictures(self.say)

    def take_from(self, connection: Connection, paced: Event | None = None) -> None:
        """Take frames from a connection until it ends.

        Args:
            connection: The connection.
            paced: If given, frames come at the times that they have, as a recording is played; set to stop waiting.

        Raises:
            av.error.FFmpegError: If it breaks off.
            Closed: If nobody waits for frames any more.
        """
        pace, punctual, begun, started = Pace(self._fps, connection.rate), math.inf, None, None
        for seconds, frame in connection.frames(self.counts.damage):
            now = time.monotonic()
            if paced is not None:
                started = now - seconds if started is None else started
                paced.wait(max(0.0, started + seconds - now))
                now = time.monotonic()
            begun = self._begin(connection, now) if begun is None else begun
            self.latest, self.counts.seconds = now, begun + seconds
            self.counts.seen += 1
            punctual = min(punctual, now - self.counts.seconds)
            if pace.takes(seconds):
                self.counts.taken += 1
                picture = self._prepare(self._pictures.of(frame))
                self._mailbox.put(Taken(self.counts.seconds, picture, self.counts.seconds + punctual))

    def say(self, text: str) -> None:
        """Tell the user something."""
        self._mailbox.put(Remark(text))

    def _begin(self, connection: Connection, now: float) -> float:
        """Return the time of the first frame of a connection, and say what is to be known about it."""
        if not self.counts.seen:
            self._introduce(connection)
            return 0.0
        lost = now - self.latest
        self.counts.reconnections += 1
        self.counts.lost += lost
        text = f"{self._name} is back after {lost:.1f} s, which are lost. Scores start anew from here."
        self._mailbox.put(Remark(text, restarts=True))
        return self.counts.seconds + lost

    def _introduce(self, connection: Connection) -> None:
        if connection.rate < 0.95 * self._fps:
            self.say(
                f"{self._name} has {connection.rate:.3g} frames per second, fewer than the {self._fps:.3g} to take: "
                f"all are taken, and look {self._fps / connection.rate:.2g} times as fast to the model."
            )
        remarks = Remarks()
        remarks.add({"hdr": [self._name] if connection.is_hdr else []})
        for note in remarks.notes():
            self.say(note)
