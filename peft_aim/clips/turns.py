"""Keeps calls of other threads out of a call that switches adapters."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

IN_ANOTHER_THREAD = (
    "Another thread calls this model at the same time, and one of the two calls has adapter_names, which switches "
    "adapters during the call. Pass adapter_names in all threads, so that they take turns, or use a lock."
)


class Turns:
    """Which adapter is active is a state of the model, shared by threads: calls that switch it take turns.

    A call that does not switch adapters cannot run beside one that does. Compiled calls are not noticed.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._switches: int | None = None  # the thread that switches adapters
        self._calls: set[int] = set()  # threads that call the model

    @contextmanager
    def switching(self) -> Iterator[None]:
        """Wait until no other thread switches adapters.

        Raises:
            RuntimeError: If another thread is calling the model.
        """
        with self._lock:
            before, self._switches = self._switches, threading.get_ident()
            try:
                alive = {thread.ident for thread in threading.enumerate()}  # a call may have ended its thread
                if self._calls & alive - {threading.get_ident()}:
                    raise RuntimeError(IN_ANOTHER_THREAD)
                yield
            finally:
                self._switches = before

    def begin_call(self) -> None:
        """Record that this thread calls the model.

        Raises:
            RuntimeError: If another thread switches adapters.
        """
        self._calls.add(threading.get_ident())
        if self._switches not in (None, threading.get_ident()):
            self.end_call()
            raise RuntimeError(IN_ANOTHER_THREAD)

    def end_call(self) -> None:
        """Record that this thread's call is over."""
        self._calls.discard(threading.get_ident())

    def __reduce__(self) -> tuple:
        """Create copies and pickles empty: calls belong to a model."""
        return Turns, ()
