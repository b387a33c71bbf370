"""The processes that share the work: one, or as many as ``accelerate launch`` or ``torchrun`` started."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def on_cpu() -> bool:
    """Whether the CPU is the only device."""
    return not torch.accelerator.is_available()


def processes() -> PartialState:
    """Return accelerate's state of the processes; without a GPU they communicate with gloo."""
    return PartialState(cpu=on_cpu())


def say(text: str) -> None:
    """Print on the main process only."""
    processes().print(text)


def once(work: Callable[[], T]) -> T:
    """Return the result of a function on all processes, or raise its error; only the main process calls it.

    Example:
        >>> once(lambda: 1 + 1)
        2
    """
    done: list[Any] = [None, None]
    if processes().is_main_process:
        try:
            done[0] = work()
        except Exception as error:  # the others would wait for a result
            done[1] = error
    result, error = broadcast_object_list(done)
    if error is not None:
        raise error
    return result


def gather(values: Iterable[T]) -> list[T]:
    """Return the distinct values of all processes, sorted."""
    gathered: list[Any] = [list(values)]
    if torch.distributed.is_initialized():
        mine, gathered = gathered[0], [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, mine)
    return sorted({value for of_process in gathered for value in of_process})
