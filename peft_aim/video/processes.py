"""The processes that share the work: one, or as many as ``accelerate launch`` or ``torchrun`` have started."""

from __future__ import annotations

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
