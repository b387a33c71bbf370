"""A value that each thread sees as its own, and that torch.compile can trace."""

from __future__ import annotations

import threading
from typing import Any

import torch


class PerThread:
    """Holds one value per thread; None until the thread has set it.

    ``torch.compile`` can trace neither a ``threading.local`` nor a ``ContextVar``, so while tracing (which holds a
    global lock) the value last set by anyone is used: a plain attribute.

    Example:
        >>> value = PerThread()
        >>> value.set(3)
        >>> value.get()
        3
        >>> thread = threading.Thread(target=lambda: print(value.get()))
        >>> thread.start(); thread.join()
        None
    """

    def __init__(self) -> None:
        self._own = threading.local()
        self._traced: Any = None

    def get(self) -> Any:
        """Return what this thread has set."""
        if torch.compiler.is_compiling():
            return self._traced
        return getattr(self._own, "value", None)

    def set(self, value: Any) -> None:
        """Set the value of this thread."""
        self._traced = value  # also outside of tracing: single blocks may be compiled inside an eager model
        if not torch.compiler.is_compiling():
            self._own.value = value

    def __reduce__(self) -> tuple:
        """Copies and pickles start empty: a value belongs to a running call."""
        return PerThread, ()
