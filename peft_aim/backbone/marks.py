"""Marks of positions, to observe which positions influence which: NaN, or numbers other than those of a run before.

NaN spreads to everything that depends on it, whatever the numbers are, in one run. Modules that raise an error on NaN
are run twice, on ones and then with other numbers at one position.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TypeVar

import torch
from torch import Tensor

from peft_aim.tracing import passing_marks

Result = TypeVar("Result")


class NaNMarks:
    """Marks that are NaN."""

    def of(self, tensor: Tensor) -> Tensor:
        """Return which entries of a tensor are marked.

        Example:
            >>> NaNMarks().of(torch.tensor([1.0, torch.nan])).tolist()
            [False, True]
        """
        return tensor.isnan()

    def put(self, tensor: Tensor, where: Tensor) -> Tensor:
        """Return a tensor with marks at some entries."""
        return tensor.masked_fill(where, torch.nan)

    def in_products(self) -> AbstractContextManager:
        """Return a context in which products of tensors compute nothing but have the marks of their factors."""
        return passing_marks()


class NumberMarks:
    """Marks that are numbers other than those in a first run, in which nothing is marked.

    Example:
        >>> marks = NumberMarks()
        >>> for _ in range(2):
        ...     tensor = marks.put(torch.ones(3), torch.tensor([False, True, False]))
        ...     print(marks.of(tensor).tolist())
        ...     marks.compare()
        [False, False, False]
        [False, True, False]
    """

    def __init__(self) -> None:
        self._before: list[Tensor] | None = None
        self._seen: list[Tensor] = []

    def compare(self) -> None:
        """Start another run, to be compared with this one."""
        self._before, self._seen = self._seen, []

    def of(self, tensor: Tensor) -> Tensor:
        """Return which entries of a tensor are marked: which differ from those of the tensor asked about before."""
        self._seen.append(tensor.clone())
        if self._before is None:
            return torch.zeros_like(tensor, dtype=torch.bool)
        return tensor != self._before[len(self._seen) - 1]

    def put(self, tensor: Tensor, where: Tensor) -> Tensor:
        """Return a tensor with marks at some entries, other numbers for each, so that no norm removes them."""
        if self._before is None:
            return tensor
        others = 1 + torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0))
        return torch.where(where, others.to(tensor), tensor)

    def in_products(self) -> AbstractContextManager:
        """Return a context in which products of tensors are computed."""
        return nullcontext()


Marks = NaNMarks | NumberMarks


def observed(run: Callable[[Marks], Result]) -> Result:
    """Return what a function that runs a module observes with marks, those that the module can run on.

    Raises:
        Exception: What the module raises on either.
    """
    with suppress(Exception):
        return run(NaNMarks())
    numbers = NumberMarks()
    run(numbers)
    numbers.compare()
    return run(numbers)
