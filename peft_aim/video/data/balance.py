"""Let rare classes count as much as frequent ones: by drawing their videos more often, or by weighting the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def balanced(labels: Sequence[int], seed: int) -> list[int]:
    """Draw as many videos as there are, equally many of each class; within a class, all equally often.

    Equally means that the numbers differ by one at most.

    Args:
        labels: Class of each video.
        seed: Random seed.

    Returns:
        Indices of the videos.

    Example:
        >>> drawn = balanced([0, 0, 0, 0, 0, 1], seed=0)
        >>> sum(i == 5 for i in drawn), len(drawn)
        (3, 6)
    """
    generator, of_class = torch.Generator().manual_seed(seed), {}
    for i, label in enumerate(labels):
        of_class.setdefault(label, []).append(i)
    least, more = divmod(len(labels), len(of_class))
    drawn, classes = [], sorted(of_class)
    for rank, place in enumerate(torch.randperm(len(classes), generator=generator).tolist()):
        own, count = torch.tensor(of_class[classes[place]]), least + (rank < more)
        rounds = [own[torch.randperm(len(own), generator=generator)] for _ in range(math.ceil(count / len(own)))]
        drawn += torch.cat(rounds)[:count].tolist()
    return drawn


def class_weights(labels: Sequence[int], classes: int) -> Tensor:
    """Return the inverse frequency of each class, so that the mean weight over all videos is 1.

    Args:
        labels: Class of each video.
        classes: Number of classes; those without videos have the weight 0.

    Returns:
        Weights ``(classes,)``.

    Example:
        >>> class_weights([0, 0, 0, 1], classes=3)
        tensor([0.6667, 2.0000, 0.0000])
    """
    counts = torch.bincount(torch.tensor(labels), minlength=classes)
    weights = len(labels) / ((counts > 0).sum() * counts.clamp(min=1))
    return weights * (counts > 0)


def positive_weights(labels: Sequence[frozenset[int]], classes: int) -> Tensor:
    """Return by how much videos that have a class weigh more than those that don't, so that both count the same.

    Args:
        labels: Classes of each video.
        classes: Number of classes; those that no video has, or all have, have the weight 1.

    Returns:
        Weights ``(classes,)``, as ``pos_weight`` of torch's binary cross-entropy.

    Example:
        >>> positive_weights([frozenset({0}), frozenset({0, 1}), frozenset(), frozenset()], classes=3)
        tensor([1., 3., 1.])
    """
    counts = torch.bincount(torch.tensor([i for label in labels for i in label], dtype=torch.long), minlength=classes)
    others = len(labels) - counts
    return torch.where((counts > 0) & (others > 0), others / counts.clamp(min=1), 1.0)
