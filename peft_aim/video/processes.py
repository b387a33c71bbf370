"""The processes that share the work: one, or as many as ``accelerate launch`` or ``torchrun`` started."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import PartialState


def on_cpu() -> bool:
    """Whether the CPU is the only device."""
    return not torch.accelerator.is_available()


def processes() -> PartialState:
    """Return accelerate's state of the processes; without a GPU they communicate with gloo."""
    return PartialState(cpu=on_cpu())


def say(text: str) -> None:
    """Print on the main process only."""
    processes().print(text)


def gather(reasons: Iterable[str]) -> list[str]:
    """Return the distinct reasons of all processes, sorted."""
    gathered: list[Any] = [list(reasons)]
    if torch.distributed.is_initialized():
        mine, gathered = gathered[0], [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, mine)
    return sorted({reason for of_process in gathered for reason in of_process})
