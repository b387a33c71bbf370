"""Training loop of the benchmarks on accuracy: AdamW with warm-up, cosine decay and gradient clipping."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

WEIGHT_DECAY = 0.05
WARM_UP = 0.1  # fraction of all steps
FRESH = 10  # factor on the learning rate of newly initialized parameters, which would otherwise hardly move
CLIPPED_AT = 1.0  # maximum gradient norm; without clipping, full fine-tuning diverges at usable rates


def minimize(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    count: int,
    steps: int,
    batch: int,
    lr: float,
    after: Callable[[int], None] = lambda step: None,
) -> float:
    """Minimize a loss with AdamW, linear warm-up and cosine decay to zero.

    Args:
        model: The model; all parameters that require gradients are trained.
        loss: Maps the indices of a batch of examples to their loss.
        count: Number of examples. They are drawn in random order, each once before any is repeated.
        steps: Number of steps.
        batch: Examples per step.
        lr: Peak learning rate; that of the parameters in ``model.fresh`` is ten times higher.
        after: Called with the number of steps so far, after each step.

    Returns:
        Mean loss over the last tenth of the steps.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(groups(trained, getattr(model, "fresh", ()), lr), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    order = torch.cat([torch.randperm(count) for _ in range(math.ceil(steps * batch / count))])
    losses = []
    model.train()
    for step, indices in enumerate(order[: steps * batch].view(steps, batch), start=1):
        optimizer.zero_grad()
        value = loss(indices)
        value.backward()
        nn.utils.clip_grad_norm_(trained, CLIPPED_AT)
        optimizer.step()
        schedule.step()
        losses.append(value.item())
        after(step)
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
