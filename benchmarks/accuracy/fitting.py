"""Training and scoring of models on synthetic clips."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.accuracy.reversals import Clips
from benchmarks.training.loop import minimize


def fit(model: nn.Module, clips: Clips, steps: int, batch: int, lr: float) -> float:
    """Train a model to classify clips and return its final loss."""
    loss = lambda indices: F.cross_entropy(model(clips.pixels[indices]), clips.labels[indices])
    return minimize(model, loss, len(clips), steps, batch, lr)


@torch.no_grad()
def scores_of(model: nn.Module, clips: Clips) -> Tensor:
    """Return the scores of all clips, ``(M, K)``."""
    return torch.cat([model(pixels) for pixels in clips.pixels.split(50)])
