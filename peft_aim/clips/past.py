"""What a stream remembers of the frames before a call, for a model that runs its frames one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

Cell = dict[str, Tensor]


@dataclass(eq=False)
class Past:
    """The frames of a stream before a call, as far as the model remembers them.

    Tensors are written in place, and are the same from call to call, so that a compiled model is not compiled again
    as time goes on.

    Attributes:
        width: Number of frames that a frame attends to, itself included.
        time: Number of frames before the call, a scalar.
        cells: What each part of the model that passes information between frames remembers, in the order in which
            these parts run. They create it in the first call.
    """

    width: int
    time: Tensor
    cells: list[Cell] = field(default_factory=list)
    _used: int = 0

    def begin(self) -> None:
        """Begin a call: the first part that runs is the first cell's."""
        self._used = 0

    @property
    def is_used(self) -> bool:
        """Whether a part has run since the call began."""
        return self._used > 0

    def part(self) -> Part:
        """Return the past of the part that runs now."""
        self._used += 1
        if self._used > len(self.cells):
            self.cells.append({})
        return Part(self.width, self.time, self.cells[self._used - 1])

    def without_cell(self) -> Part:
        """Return the past of a part that does not remember anything itself."""
        return Part(self.width, self.time, {})


class Part(NamedTuple):
    """The past of one part of the model, which does not say which: blocks that are compiled alone share their code.

    Attributes:
        width: Number of frames that a frame attends to, itself included.
        time: Number of frames before the call, a scalar.
        cell: What the part remembers.
    """

    width: int
    time: Tensor
    cell: Cell


class Continued(NamedTuple):
    """Frames that continue a stream; the first argument of a model in place of clips.

    Attributes:
        frames: The frames, ``(B, T, C, H, W)``.
        past: What came before.
    """

    frames: Tensor
    past: Past


def kept(cell: Cell, name: str, make: Callable[[], Tensor]) -> Tensor:
    """Return a tensor that a part remembers, created if it is not there yet.

    Example:
        >>> cell = {}
        >>> kept(cell, "frames", lambda: torch.zeros(2)).add_(1).tolist(), kept(cell, "frames", None).tolist()
        ([1.0, 1.0], [1.0, 1.0])
    """
    if name not in cell:
        cell[name] = make()
    return cell[name]


def times(frames: int, past: Past | Part | None, device: torch.device | None = None) -> Tensor:
    """Return the numbers of frames, counted from the start of the clip or stream.

    Example:
        >>> times(3, Past(8, torch.tensor(2))).tolist()
        [2, 3, 4]
    """
    numbers = torch.arange(frames, device=device)
    return numbers if past is None else numbers + past.time
