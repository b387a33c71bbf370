"""Metrics of classification, for classes in pairs whose clips are reversals of each other."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def partner(labels: Tensor) -> Tensor:
    """Return the classes of the reversed clips; 0 and 1, 2 and 3 ... are partners.

    Example:
        >>> import torch
        >>> partner(torch.tensor([0, 1, 6]))
        tensor([1, 0, 7])
    """
    return labels ^ 1


def ahead(scores: Tensor, labels: Tensor) -> Tensor:
    """Return for each clip whether its class scores above its partner, the class of the reversed clip, ``(M,)``."""
    right, reverse = (scores.gather(1, classes[:, None])[:, 0] for classes in (labels, partner(labels)))
    return right > reverse


def measured(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return top-1 accuracy, within-pair accuracy and the loss.

    Within-pair accuracy is the share of clips that are :func:`ahead`.

    Example:
        >>> import torch
        >>> measured(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([1]))
        {'top1': 0.0, 'within_pair': 1.0, 'loss': 1.4076}
    """
    return {
        "top1": (scores.argmax(1) == labels).float().mean().item(),
        "within_pair": ahead(scores, labels).float().mean().item(),
        "loss": round(F.cross_entropy(scores, labels).item(), 4),
    }


def by_video(scores: Tensor, labels: Tensor, paired: bool) -> dict[str, Any]:
    """Return top-1 and within-pair accuracy, and the videos that they come from.

    Args:
        scores: Class scores ``(M, K)``.
        labels: Classes ``(M,)``.
        paired: Whether the classes come in pairs; if not, what is within them is None.

    Example:
        >>> import torch
        >>> by_video(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([1]), paired=True)
        {'top1': 0.0, 'within_pair': 1.0, 'held_out_loss': 1.4076, 'right': [0], 'within': [1]}
    """
    right = scores.argmax(1) == labels
    within = ahead(scores, labels) if paired else None
    return {
        "top1": right.float().mean().item(),
        "within_pair": None if within is None else within.float().mean().item(),
        "held_out_loss": round(F.cross_entropy(scores, labels).item(), 4),
        "right": right.int().tolist(),
        "within": None if within is None else within.int().tolist(),
    }
