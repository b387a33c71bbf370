"""The tasks, real and synthetic, in one form: clips to train on, and videos to evaluate of which a part has passed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.accuracy.reversals import CLASSES, training_clips, with_reversals
from benchmarks.accuracy.small_vit import pretrained
from benchmarks.methods.rivals import AS_TRAINED
from benchmarks.real.rows import AIM, FRAMES, backbone
from benchmarks.real.videos import TASKS, Clips, Video, decode
from benchmarks.reporting.record import RESULTS
from peft_aim.video.data import evaluation_frames
from peft_aim.video.recipe import Recipe

SYNTHETIC = "reversals"
TEST_SEED = 1_000  # that of benchmarks.accuracy


@dataclass(frozen=True)
class Plan:
    """Sizes of the benchmark, the same for all rows.

    Attributes:
        size: Height and width of real frames in pixels.
        steps: Training steps on real videos.
        batch: Real clips per step.
        synthetic_steps: Training steps on synthetic clips.
        synthetic_batch: Synthetic clips per step.
        train: Synthetic clips to train on.
        test: Synthetic clips to evaluate on; the second half is the first half reversed.
        pretraining: Pretraining steps of the backbone for synthetic clips.
        seeds: Number of seeds.
    """

    size: int = 112
    steps: int = 144
    batch: int = 6
    synthetic_steps: int = 280
    synthetic_batch: int = 8
    train: int = 1_000
    test: int = 600
    pretraining: int = 1_500
    seeds: int = 2


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: Its name.
        classes: Number of classes.
        paired: Whether classes 0 and 1, 2 and 3 ... are reversals of each other.
        steps: Training steps.
        batch: Clips per step.
        rates: Learning rate of each seed, chosen for the bidirectional adapter by other benchmarks.
        labels: Classes of the videos to evaluate, ``(M,)``.
        groups: What makes these videos dependent on each other, a person for example, ``M`` in all.
        backbone: Returns a new frozen backbone.
        training: Returns for a seed how many clips there are, and what maps their indices to clips and classes.
        seen: Returns 8 frames ``(M, 8, C, H, W)``, at equal distances, of the part of each video that has passed, in
            percent.
    """

    name: str
    classes: int
    paired: bool
    steps: int
    batch: int
    rates: list[float]
    labels: Tensor
    groups: list[str]
    backbone: Callable[[], nn.Module]
    training: Callable[[int], tuple[int, Callable[[Tensor], tuple[Tensor, Tensor]]]]
    seen: Callable[[int], Tensor]


def tasks(plan: Plan, data: Path, cached: Path) -> Iterator[Task]:
    """Return the tasks.

    Args:
        plan: Sizes of the benchmark.
        data: Folder of the real videos and weights.
        cached: File for the decoded videos.
    """
    decode(data, cached)
    for name in ("signs", "order"):
        yield real(name, plan, data, cached)
    yield synthetic(plan)


def real(name: str, plan: Plan, data: Path, cached: Path) -> Task:
    """Return a task of ``benchmarks.real``."""
    task = TASKS[name](cached)
    _, preprocessing = backbone(data, plan.size)
    clips = lambda videos: Clips(videos, Recipe(frames=FRAMES), preprocessing, task.classes)
    train, videos = clips(task.train), task.held_out

    def seen(percent: int) -> Tensor:
        return clips([beginning(video, percent) for video in videos]).middle(range(len(videos)))

    rate = json.loads((RESULTS / "real_cpu.json").read_text())["rates"][name][AIM.name]
    return Task(
        name=name,
        classes=len(task.classes),
        paired=task.paired,
        steps=plan.steps,
        batch=plan.batch,
        rates=[rate] * plan.seeds,
        labels=torch.tensor([video.label for video in videos]),
        groups=[video.group for video in videos],
        backbone=lambda: backbone(data, plan.size)[0],
        training=lambda seed: (len(task.train), lambda indices: (train.random(indices), train.labels[indices])),
        seen=seen,
    )


def synthetic(plan: Plan) -> Task:
    """Return the task of ``benchmarks.accuracy``."""
    test = with_reversals("test", plan.test, TEST_SEED)

    @cache
    def model() -> nn.Module:
        with torch.random.fork_rng():  # it has a seed of its own, and its caller another
            return pretrained(plan.pretraining)[0]

    def training(seed: int) -> tuple[int, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        clips = training_clips(plan.train, seed)
        return len(clips), lambda indices: (clips.pixels[indices], clips.labels[indices])

    def seen(percent: int) -> Tensor:
        (chosen,) = evaluation_frames(passed(FRAMES, percent), FRAMES, stride=None)
        return test.pixels[:, chosen]

    rows = json.loads((RESULTS / "accuracy_over_time.json").read_text())["tables"]["over time"]
    pairs = len(test) // 2
    return Task(
        name=SYNTHETIC,
        classes=len(CLASSES),
        paired=True,
        steps=plan.synthetic_steps,
        batch=plan.synthetic_batch,
        rates=next(row["rates"] for row in rows if row["row"] == AS_TRAINED)[: plan.seeds],
        labels=test.labels,
        groups=[str(i % pairs) for i in range(len(test))],
        backbone=lambda: copy.deepcopy(model()),
        training=training,
        seen=seen,
    )


def passed(frames: int, percent: int) -> int:
    """Return how many frames, each in the middle of one of equal segments of a video, a part of it contains.

    Args:
        frames: Number of segments.
        percent: The part of the video that has passed.

    Returns:
        Their number, at least one.

    Example:
        >>> [passed(8, percent) for percent in range(10, 101, 10)]
        [1, 2, 2, 3, 4, 5, 6, 6, 7, 8]
    """
    return max(1, (percent * frames + 50) // 100)


def beginning(video: Video, percent: int) -> Video:
    """Return the part of a video that has passed; of one that is played backward, the last frames of its file."""
    count = max(1, len(video.frames) * percent // 100)
    return replace(video, frames=video.frames[-count:] if video.backward else video.frames[:count])
