"""Labels of samples once they are indexed: a class, several classes, or numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from peft_aim.video.data.listing import Label


def classes_in(label: Label) -> frozenset[int]:
    """Return the indices of the classes of a label, one or several.

    Example:
        >>> classes_in(2), classes_in(frozenset({0, 1}))
        (frozenset({2}), frozenset({0, 1}))
    """
    return frozenset([label]) if isinstance(label, int) else label


def target_of(label: Label, outputs: int) -> Tensor:
    """Return what a model should predict for a label: 1 for its classes and 0 for others, or its numbers.

    Args:
        label: The index of a class, the set of those of several classes, or a tuple of numbers.
        outputs: Number of outputs C of the model.

    Shape:
        ``(C,)``

    Example:
        >>> [target_of(label, 3).tolist() for label in (1, frozenset({0, 2}), (0.5, 1.5, 2.5))]
        [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.5, 1.5, 2.5]]
    """
    if isinstance(label, tuple):
        return torch.tensor(label)
    target = torch.zeros(outputs)
    target[sorted(classes_in(label))] = 1.0
    return target


def as_text(label: Label, classes: Sequence[str]) -> str:
    """Return a label as it could be written in a list.

    Example:
        >>> [as_text(label, ["run", "walk"]) for label in (0, frozenset({0, 1}), (0.5, 2.0))]
        ['run', 'run|walk', '0.5|2.0']
    """
    if isinstance(label, tuple):
        return "|".join(map(str, label))
    return "|".join(classes[i] for i in sorted(classes_in(label))) or "|"
