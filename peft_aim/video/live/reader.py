"""The reading thread: it opens a source, again if it breaks off, and takes frames from it."""

from __future__ import annotations

import time
from threading import Event, Thread

import av

from peft_aim.video.data import BrokenVideo
from peft_aim.video.live.connection import Connection
from peft_aim.video.live.mailbox import Closed, Ended, Mailbox
from peft_aim.video.live.source import Feed
from peft_aim.video.live.taking import Taker

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds before trying again, doubled each time


class Reader:
    """A thread that reads a source until it ends, and puts what it reads into a mailbox.

    Cameras and streams that break off are opened again; recordings and pipes are not.

    Args:
        feed: The source.
        taker: What takes frames from it.
        mailbox: Where they are put.
        timeout: Seconds to wait for the source, see :meth:`peft_aim.video.live.source.Feed.opened`.
        retry: How often to try in a row to open a source again.
        live: Whether to skip frames that the model has no time for; None does so for cameras and streams.
    """

    def __init__(
        self, feed: Feed, taker: Taker, mailbox: Mailbox, timeout: float, retry: int, live: bool | None
    ) -> None:
        self._feed, self._taker, self._mailbox = feed, taker, mailbox
        self._timeout, self._retry, self._live = timeout, retry, live
        self._tried, self._stopped = time.monotonic(), Event()
        self._thread = Thread(target=self._run, name=f"reading {feed.name}", daemon=True)

    @property
    def silence(self) -> float:
        """Seconds since anything came from the source, or since it was last tried to open it."""
        return time.monotonic() - max(self._tried, self._taker.latest)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; one that waits for the source does so until that answers."""
        self._stopped.set()
        self._mailbox.close()
        if self._thread.ident is not None:
            self._thread.join(timeout=0.5)

    def _run(self) -> None:
        try:
            try:
                self._read()
                ended = Ended()
            except Exception as error:  # the main thread raises it
                ended = Ended(error)
            self._mailbox.put(ended)
        except Closed:
            return

    def _read(self) -> None:
        counts, failures = self._taker.counts, 0
        while True:
            seen = counts.seen
            reason = self._read_once()
            if not reason:
                return
            failures = 1 if counts.seen > seen else failures + 1
            broken = f"{self._feed.name} broke off at {counts.seconds:.1f} s ({reason})"
            if failures > self._retry:
                raise BrokenVideo(f"{broken}, and is not back after {self._retry} tries (--retry).")
            if failures == 1:
                self._taker.say(f"{broken}. Trying to open it again, up to {self._retry} times.")
            if self._stopped.wait(min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)):
                raise Closed

    def _read_once(self) -> str:
        """Read the source until it ends or breaks off; return why it should be opened again, "" if it should not.

        Raises:
            BrokenVideo: If it has never had any frames, or cannot be opened again.
        """
        counts, streams, self._tried = self._taker.counts, self._feed.is_live, time.monotonic()
        try:
            with self._feed.opened(self._timeout, self._stopped, self._taker.say) as stream:
                connection = Connection(stream)
                streams = streams and not connection.is_recording
                self._mailbox.newest_win = streams if self._live is None else self._live
                self._taker.take_from(connection)
            reason = "it ended" if streams and self._retry else ""
        except BrokenVideo as error:
            reason = str(error).rstrip(".")
            if not counts.seen:
                raise
        except av.error.FFmpegError as error:  # in its midst
            reason = self._feed.reason(error, self._timeout)
            if not streams:  # as plain decoding has it
                counts.damage.note(reason, f"at {counts.seconds:.2f} s, where the rest cannot be read")
                reason = ""
        if not counts.seen:
            raise BrokenVideo(f"None of the frames of {self._feed.name} can be decoded{counts.damage.why}.")
        return reason
