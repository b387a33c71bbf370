"""Accuracy over the part of a video that has passed, and at the end of each video of a stream that runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.early.tasks import Task, passed
from benchmarks.training.metrics import by_video
from peft_aim.streaming import Stream

Facts = dict[str, Any]
PARTS = range(10, 101, 10)  # percent of the video
PORTION = 16  # clips at once

STREAM, TRUNCATED, SAMPLED, APPROXIMATE = "stream", "truncated", "sampled", "approximate"


def of_causal(model: nn.Module, task: Task) -> Facts:
    """Score a causal adapter: while each video lasts, and at the end of a video that follows another one."""
    clips = task.seen(100)
    before = clips[others(task.labels)]
    return {
        "curves": {STREAM: curve(at_parts(streamed(Stream(model), clips)), task)},
        "running": point(running(Stream(model), before, clips), task),
    }


def of_bidirectional(model: nn.Module, task: Task) -> Facts:
    """Score a bidirectional adapter while each video lasts, in the three ways in which it can be run."""
    clips = task.seen(100)
    sampled = (in_portions(model, task.seen(part)) for part in PARTS)
    return {
        "curves": {
            TRUNCATED: curve(at_parts(truncated(model, clips)), task),
            SAMPLED: curve(sampled, task),
            APPROXIMATE: curve(at_parts(streamed(Stream(model, approximate=True), clips)), task),
        }
    }


@torch.no_grad()
def in_portions(score: Callable[..., Tensor], *clips: Tensor) -> Tensor:
    """Return the scores of clips ``(M, T, C, H, W)``, of which some are scored at once."""
    portions = zip(*(part.split(PORTION) for part in clips), strict=True)
    return torch.cat([score(*portion) for portion in portions], dim=-2)


def truncated(model: nn.Module, clips: Tensor) -> Tensor:
    """Return the scores of the first 1, 2, ... T frames as clips of their own, ``(T, M, K)``."""
    return torch.stack([in_portions(model, clips[:, :count]) for count in range(1, clips.shape[1] + 1)])


def streamed(stream: Stream, clips: Tensor) -> Tensor:
    """Return the scores after the 1st, 2nd, ... T-th frame, each computed once, ``(T, M, K)``."""

    def score(portion: Tensor) -> Tensor:
        stream.reset()
        return torch.stack([stream.push(frames) for frames in portion.unbind(1)])

    return in_portions(score, clips)


def running(stream: Stream, before: Tensor, clips: Tensor) -> Tensor:
    """Return the scores at the end of clips that follow other ones in the same stream, ``(M, K)``."""

    def score(earlier: Tensor, portion: Tensor) -> Tensor:
        stream.reset()
        stream.push(earlier)
        return stream.push(portion)

    return in_portions(score, before, clips)


def others(labels: Tensor) -> Tensor:
    """Return for each video the index of another one, at random among those of other classes, ``(M,)``.

    Example:
        >>> others(torch.tensor([0, 1])).tolist()
        [1, 0]
    """
    differs = (labels[:, None] != labels).float()
    return torch.multinomial(differs, 1, generator=torch.Generator().manual_seed(0))[:, 0]


def at_parts(scores: Tensor) -> list[Tensor]:
    """Return the scores at each part of the video, of those after each frame, ``(T, M, K)``."""
    return [scores[passed(len(scores), part) - 1] for part in PARTS]


def curve(scores: Iterable[Tensor], task: Task) -> list[Facts]:
    """Return the accuracy at each part of the video."""
    return [{"part": part, **point(of_part, task)} for part, of_part in zip(PARTS, scores, strict=True)]


def point(scores: Tensor, task: Task) -> Facts:
    """Return the accuracy, and which videos are right, as text of 1 and 0 in the order of ``task.groups``."""
    found = by_video(scores, task.labels, task.paired)
    return {key: "".join(map(str, value)) if isinstance(value, list) else value for key, value in found.items()}
