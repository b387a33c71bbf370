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
        live: Whether frames come in real time, and are skipped if the model has no time for them; None does so for
            cameras and streams.
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
        """Read the source to its end, opening it again if it breaks off."""
        reason = self._read_once()
        while reason:
            broken = f"{self._feed.name} broke off at {self._taker.counts.seconds:.1f} s: {reason}."
            reason = self._read_again(broken)

    def _read_again(self, broken: str) -> str:
        """Try to open the source again; return why it broke off after that, "" if it ended.

        Raises:
            BrokenVideo: If it is not back after all tries.
        """
        seen, reason = self._taker.counts.seen, ""
        if self._retry:
            self._taker.say(f"{broken} Trying again (--retry {self._retry}).")
        for i in range(self._retry):
            if self._stopped.wait(min(FIRST_PAUSE * 2 ** min(i, 9), LONGEST_PAUSE)):
                raise Closed
            reason = self._read_once()
            if self._taker.counts.seen > seen or not reason:
                return reason
        last = f" When last tried: {reason}." if reason else ""
        raise BrokenVideo(f"{broken} It is not back (--retry {self._retry}).{last}")

    def _read_once(self) -> str:
        """Read the source until it ends or breaks off; return why it should be opened again, "" if it should not.

        Raises:
            BrokenVideo: If it has never had any frames, or cannot be opened again.
        """
        counts, streams, self._tried = self._taker.counts, self._feed.is_live, time.monotonic()
        try:
            with self._feed.opened(self._timeout, self._stopped, self._taker.say) as stream:
                connection = Connection(stream)
                if counts.seen and connection.is_recording:  # as HLS is after its end: what is left has been seen
                    return ""
                streams = streams and not connection.is_recording
                self._mailbox.newest_win = streams if self._live is None else self._live
                self._taker.take_from(connection, None if streams or not self._live else self._stopped)
            reason = "it ended" if streams and self._retry else ""
        except BrokenVideo as error:
            reason = str(error).rstrip(".")
            if not counts.seen:
                raise
        except av.error.FFmpegError as error:  # in its midst
            reason = self._feed.reason(error, self._timeout)
            if self._feed.is_live and not streams:
                raise BrokenVideo(f"{self._feed.name} broke off at {counts.seconds:.1f} s: {reason}.") from error
            if not streams:  # as plain decoding has it
                counts.damage.note(reason, f"at {counts.seconds:.2f} s, where the rest cannot be read")
                reason = ""
        if not counts.seen:
            raise BrokenVideo(f"None of the frames of {self._feed.name} can be decoded{counts.damage.why}.")
        return reason
