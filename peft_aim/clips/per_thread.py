"""A value that each thread sees as its own, and that torch.compile can trace."""

from __future__ import annotations

import threading
from typing import Any

import torch


class PerThread:
    """Holds one value per thread; None until the thread has set it.

    ``torch.compile`` can trace neither a ``threading.local`` nor a ``ContextVar``. Code that is traced together with
    what set the value (a whole model) finds it in a plain attribute; code that is traced alone (a block of a model
    that runs eagerly) leaves the graph to ask. Threads that run one whole model, compiled with graph breaks, at the
    same time share the attribute: compile with ``fullgraph=True``, or give each thread a model of its own.

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
        return self._get_own() if self.traced is None else self.traced

    @property
    def traced(self) -> Any:
        """What was set by the code that is being traced right now, None if nothing was or if nothing is traced."""
        return self._traced if torch.compiler.is_compiling() else None

    def set(self, value: Any) -> None:
        """Set the value of this thread."""
        if torch.compiler.is_compiling():
            self._traced = value
        else:
            self._traced = None  # an earlier trace may have failed half way
            self._own.value = value

    @torch.compiler.disable
    def _get_own(self) -> Any:
        return getattr(self._own, "value", None)

    def __reduce__(self) -> tuple:
        """Copies and pickles start empty: a value belongs to a running call."""
        return PerThread, ()
