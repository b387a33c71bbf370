"""Training loop and metrics of the benchmark on synthetic clips."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.accuracy.reversals import Clips, partner

WEIGHT_DECAY = 0.05
WARM_UP = 0.1  # fraction of all steps
FRESH = 10  # factor on the learning rate of newly initialized parameters, which would otherwise hardly move
CLIPPED_AT = 1.0  # maximum gradient norm; without clipping, full fine-tuning diverges at usable rates


def minimize(
    model: nn.Module, loss: Callable[[Tensor], Tensor], count: int, steps: int, batch: int, lr: float
) -> float:
    """Minimize a loss with AdamW, linear warm-up and cosine decay to zero.

    Args:
        model: The model; all parameters that require gradients are trained.
        loss: Maps the indices of a batch of examples to their loss.
        count: Number of examples. They are drawn in random order, each once before any is repeated.
        steps: Number of steps.
        batch: Examples per step.
        lr: Peak learning rate; that of the parameters in ``model.fresh`` is ten times higher.

    Returns:
        Mean loss over the last tenth of the steps.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(groups(trained, getattr(model, "fresh", ()), lr), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    order = torch.cat([torch.randperm(count) for _ in range(math.ceil(steps * batch / count))])
    losses = []
    model.train()
    for indices in order[: steps * batch].view(steps, batch):
        optimizer.zero_grad()
        value = loss(indices)
        value.backward()
        nn.utils.clip_grad_norm_(trained, CLIPPED_AT)
        optimizer.step()
        schedule.step()
        losses.append(value.item())
    model.eval()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def groups(trained: Iterable[nn.Parameter], fresh: Iterable[nn.Parameter], lr: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: higher rate for ``fresh``, no weight decay on biases, norms and embeddings."""
    fresh, found = {id(parameter) for parameter in fresh}, defaultdict(list)
    for parameter in trained:
        found[id(parameter) in fresh, parameter.ndim in (2, 4)].append(parameter)
    return [
        {"params": parameters, "lr": lr * FRESH**is_fresh, "weight_decay": WEIGHT_DECAY * is_matrix}
        for (is_fresh, is_matrix), parameters in found.items()
    ]


def rate(step: int, steps: int) -> float:
    """Return the learning rate of a step as a fraction of the peak.

    Example:
        >>> [round(rate(step, 20), 2) for step in (0, 1, 2, 11, 19)]
        [0.5, 1.0, 1.0, 0.5, 0.01]
    """
    warm = max(1, round(WARM_UP * steps))
    return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / max(1, steps - warm)))


def fit(model: nn.Module, clips: Clips, steps: int, batch: int, lr: float) -> float:
    """Train a model to classify clips and return its final loss."""
    loss = lambda indices: F.cross_entropy(model(clips.pixels[indices]), clips.labels[indices])
    return minimize(model, loss, len(clips), steps, batch, lr)


@torch.no_grad()
def scores_of(model: nn.Module, clips: Clips) -> Tensor:
    """Return the scores of all clips, ``(M, K)``."""
    return torch.cat([model(pixels) for pixels in clips.pixels.split(50)])


def measured(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return top-1 accuracy, within-pair accuracy and the loss.

    Within-pair accuracy is the share of clips whose class scores above its partner, the class of the reversed clip.

    Example:
        >>> measured(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([1]))
        {'top1': 0.0, 'within_pair': 1.0, 'loss': 1.4076}
    """
    right, reverse = (scores.gather(1, classes[:, None])[:, 0] for classes in (labels, partner(labels)))
    return {
        "top1": (scores.argmax(1) == labels).float().mean().item(),
        "within_pair": (right > reverse).float().mean().item(),
        "loss": round(F.cross_entropy(scores, labels).item(), 4),
    }
