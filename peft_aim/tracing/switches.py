"""Switches of the whole process that are set while a model is observed, shared by observations in several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock

import torch


class Shared:
    """A context manager for several threads: the first to come enters another one, and the last to go leaves it.

    Example:
        >>> @contextmanager
        ... def light():
        ...     print("on")
        ...     yield
        ...     print("off")
        >>> shared = Shared(light)
        >>> with shared, shared:
        ...     print("work")
        on
        work
        off
    """

    def __init__(self, make: Callable[[], AbstractContextManager]) -> None:
        self._make, self._lock, self._inside = make, Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._entered = self._make()
                self._entered.__enter__()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._entered.__exit__(None, None, None)


# Runs compiled models as they were before. The switch is the process's, so of two threads that restored what they
# found, the second would restore what the first had set.
uncompiled = Shared(lambda: torch.compiler.set_stance("force_eager"))


@contextmanager
def _calling_all_modules() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with uncompiled:  # so that hooks run
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


# Neither compiled code nor the fast path of torch's own transformer layers calls all modules.
calling_all_modules = Shared(_calling_all_modules)
