"""One trial: train a row on a task, and score its validation videos."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.methods.rivals import trained_parameters
from benchmarks.real.rows import CHOICES, FRAMES, ROWS, backbone
from benchmarks.real.videos import TASKS, Clips
from benchmarks.training.loop import minimize
from benchmarks.training.metrics import by_video, measured
from peft_aim.video.recipe import Recipe

PORTION = 16  # clips per forward pass of an evaluation


@dataclass(frozen=True)
class Plan:
    """Sizes of the benchmark, the same for all rows.

    Attributes:
        size: Height and width of the frames in pixels.
        steps: Training steps.
        batch: Clips per step.
        seeds: Number of seeds.
    """

    size: int = 112
    steps: int = 80
    batch: int = 6
    seeds: int = 3


@dataclass(frozen=True)
class Setting:
    """What distinguishes a trial from the others.

    Attributes:
        row: Name of the row.
        task: Name of the task.
        lr: Learning rate.
        seed: Seed of the weights, the clips and their order.
        development: Whether to hold out training people instead of evaluating on the people of val.
        every: Steps between evaluations during training; 0 evaluates at the end only.
        longer: Factor on the number of steps.
    """

    row: str
    task: str
    lr: float
    seed: int = 0
    development: bool = False
    every: int = 0
    longer: float = 1.0


def prepare() -> None:
    """Set up a process that runs trials beside others."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # TF32, on GPUs


def run(setting: Setting, plan: Plan, data: Path, cached: Path, device: str) -> dict[str, Any]:
    """Run a trial.

    Returns:
        The number of trained parameters, the losses, and for each validation video its person and whether its top-1
        and the class of its pair are right.
    """
    began, row = time.perf_counter(), next(row for row in (*ROWS, *CHOICES) if row.name == setting.row)
    task = TASKS[setting.task](cached)
    task = task.development() if setting.development else task
    torch.manual_seed(setting.seed)
    frozen, preprocessing = backbone(data, plan.size)
    model = row.build(frozen, len(task.classes)).to(device)
    common = (Recipe(frames=FRAMES), preprocessing, task.classes, device)
    train, held_out = Clips(task.train, *common), Clips(task.held_out, *common)
    curve: list[dict[str, float]] = []

    def loss(indices: Tensor) -> Tensor:
        return F.cross_entropy(model(train.random(indices)), train.labels[indices])

    steps = max(1, round(setting.longer * plan.steps))

    def look(step: int) -> None:
        if setting.every and (step % setting.every == 0 or step == steps):
            curve.append({"step": step, **measured(scores_of(model, held_out), held_out.labels)})

    final = minimize(model, loss, len(task.train), steps, plan.batch, setting.lr, look)
    facts = {"parameters": trained_parameters(model), "loss": round(final, 4), "curve": curve}
    facts |= by_video(scores_of(model, held_out), held_out.labels, task.paired)
    facts["groups"] = [video.group for video in task.held_out]
    facts["seconds"] = round(time.perf_counter() - began, 1)
    print(f"{asdict(setting)}: top-1 {facts['top1']:.3f}, within pair {facts['within_pair']}, {facts['seconds']} s")
    return facts


@torch.no_grad()
def scores_of(model: nn.Module, clips: Clips) -> Tensor:
    """Return the scores of all videos, ``(M, K)``; the model stays in the mode that it is in."""
    training = model.training
    model.eval()
    portions = torch.arange(len(clips.videos)).split(PORTION)
    scores = torch.cat([model(clips.middle(portion.tolist())) for portion in portions])
    model.train(training)
    return scores
