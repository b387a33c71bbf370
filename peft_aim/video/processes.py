"""The processes that share the work: one, or as many as ``accelerate launch`` or ``torchrun`` have started."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import PartialState


def on_cpu() -> bool:
    """Whether there is nothing but the CPU."""
    return not torch.accelerator.is_available()


def processes() -> PartialState:
    """Return accelerate's view of the processes; without a GPU they are joined by gloo."""
    return PartialState(cpu=on_cpu())


def say(text: str) -> None:
    """Print once, however many processes there are."""
    processes().print(text)


def gather(reasons: Iterable[str]) -> list[str]:
    """Return the reasons of all processes, each once."""
    gathered: list[Any] = [list(reasons)]
    if torch.distributed.is_initialized():
        mine, gathered = gathered[0], [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, mine)
    return sorted({reason for of_process in gathered for reason in of_process})
