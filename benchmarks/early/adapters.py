"""The adapters that are compared, trained once and kept in a file."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.early.tasks import Task
from benchmarks.methods.rivals import trained_parameters
from benchmarks.real.rows import aim
from benchmarks.reporting.record import commit
from benchmarks.training.loop import minimize
from peft_aim.video.training.preceded import after_others

BIDIRECTIONAL, CAUSAL = "bidirectional", "causal"
ROWS = (BIDIRECTIONAL, CAUSAL)
PRECEDED = "preceded"  # also causal, and trained like `peft-aim train --preceded`, in this fraction of the steps
FRACTION = 0.5


@dataclass(frozen=True)
class Setting:
    """What distinguishes a trial from the others.

    Attributes:
        row: :data:`BIDIRECTIONAL`, :data:`CAUSAL` or :data:`PRECEDED`.
        task: Name of the task.
        lr: Learning rate.
        seed: Seed of the weights, the clips and their order.
    """

    row: str
    task: str
    lr: float
    seed: int


def trained(setting: Setting, task: Task, common: dict[str, Any], folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Train an adapter with the parts that ``peft-aim train`` gives it, or load it if the folder has it.

    Args:
        setting: The adapter and its seed.
        task: What it is trained on.
        common: The settings that all trials share.
        folder: Where trained adapters are kept.

    Returns:
        The model, in evaluation mode, and how it was trained: the number of its trained parameters, the loss, the
        seconds and the commit.
    """
    torch.manual_seed(setting.seed)
    model = aim(causal=setting.row != BIDIRECTIONAL)(task.backbone(), task.classes)
    path, settings = folder / f"{task.name}-{setting.row}-{setting.seed}.pt", {**asdict(setting), **common}
    found = torch.load(path) if path.exists() else {}
    if found.get("settings") != settings:
        began = time.perf_counter()
        loss = fit(model, setting, task)
        facts = {"parameters": trained_parameters(model), "loss": round(loss, 4), "trained at": commit()}
        facts["seconds of training"] = round(time.perf_counter() - began, 1)
        print(f"{setting}: {facts}", flush=True)
        found = {"settings": settings, "weights": learned(model), "facts": facts}
        torch.save(found, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)
    with torch.no_grad():
        for name, weight in learned(model).items():
            weight.copy_(found["weights"][name])
    return model.eval(), found["facts"]


def fit(model: nn.Module, setting: Setting, task: Task) -> float:
    """Train a model, and return its final loss."""
    count, batch = task.training(setting.seed)

    def loss(indices: Tensor) -> Tensor:
        clips, labels = batch(indices)
        if setting.row == PRECEDED and torch.rand(()) < FRACTION:
            clips = after_others(clips)
        return F.cross_entropy(model(clips), labels)

    return minimize(model, loss, count, task.steps, task.batch, setting.lr)


def learned(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained parameters by name."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
