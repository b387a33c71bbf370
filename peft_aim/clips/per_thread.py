"""A thread-local value that torch.compile can trace."""

from __future__ import annotations

import threading
from typing import Any

import torch


class PerThread:
    """One value per thread, None until the thread has set it.

    ``torch.compile`` can trace neither a ``threading.local`` nor a ``ContextVar``. Code that is traced together with
    the code that sets the value (a whole model) reads it from a plain attribute; code that is traced alone (a block of
    a model that runs eagerly) reads it with a graph break. Threads that concurrently run a whole model compiled with
    graph breaks share the attribute: compile with ``fullgraph=True``, or give each thread its own model.

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
        """Return the value of this thread."""
        return self._get_own() if self.traced is None else self.traced

    @property
    def traced(self) -> Any:
        """The value set by the code that is being traced, None if it set none or if nothing is being traced."""
        return self._traced if torch.compiler.is_compiling() else None

    def set(self, value: Any) -> None:
        """Set the value of this thread."""
        if torch.compiler.is_compiling():
            self._traced = value
        else:
            self._traced = None  # an earlier trace may have failed midway
            self._own.value = value

    def take(self) -> Any:
        """Return the value set last, if any, and forget it; that may have been in code that is compiled alone."""
        value = self._traced
        if torch.compiler.is_compiling():
            self._traced = None
            return value
        own = self._get_own()
        self.set(None)
        return value if own is None else own

    @torch.compiler.disable
    def _get_own(self) -> Any:
        return getattr(self._own, "value", None)

    def __reduce__(self) -> tuple:
        """Create copies and pickles empty: a value belongs to a running call."""
        return PerThread, ()
