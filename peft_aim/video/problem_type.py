"""What the labels of videos are: one class, several classes, or numbers, by transformers' names for it.

``AIMConfig.problem_type`` keeps it in the adapter; None stands for one class, as in adapters of earlier versions.
"""

from __future__ import annotations

from torch import Tensor

SINGLE_LABEL, MULTI_LABEL, REGRESSION = PROBLEM_TYPES = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)


def values_of(scores: Tensor, problem_type: str | None) -> Tensor:
    """Return what the scores of a model mean.

    Args:
        scores: The scores.
        problem_type: One of ``PROBLEM_TYPES``; None is one class per video.

    Returns:
        Probabilities that sum up to 1 over the classes (softmax) for one class per video, a probability for each class
        (sigmoid) for several classes, and the scores themselves for numbers.

    Shape:
        ``(B, C) -> (B, C)``

    Raises:
        ValueError: If there is no such problem type.

    Example:
        >>> import torch
        >>> scores = torch.zeros(1, 4)
        >>> [values_of(scores, kind)[0, 0].item() for kind in PROBLEM_TYPES]
        [0.25, 0.5, 0.0]
    """
    if problem_type in (None, SINGLE_LABEL):
        return scores.softmax(-1)
    if problem_type == MULTI_LABEL:
        return scores.sigmoid()
    if problem_type == REGRESSION:
        return scores
    raise ValueError(f"problem_type={problem_type!r} is not one of {', '.join(map(repr, PROBLEM_TYPES))}.")


def scores_for(values: Tensor, problem_type: str | None) -> Tensor:
    """Return scores that mean these probabilities or numbers: the inverse of :func:`values_of`.

    Example:
        >>> import torch
        >>> values_of(scores_for(torch.tensor([[0.25, 0.75]]), MULTI_LABEL), MULTI_LABEL)
        tensor([[0.2500, 0.7500]])
    """
    if problem_type == REGRESSION:
        return values
    return values.logit() if problem_type == MULTI_LABEL else values.log()
