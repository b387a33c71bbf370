"""What the labels of videos are: one class, several classes, or numbers, by transformers' names for it.

``AIMConfig.problem_type`` keeps it in the adapter; None stands for one class, as in adapters of earlier versions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from peft_aim.config import PROBLEM_TYPES

REGRESSION, SINGLE_LABEL, MULTI_LABEL = PROBLEM_TYPES

LIKELY = 0.5  # one of several classes is predicted if it is more probable than that


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
        >>> [values_of(scores, kind)[0, 0].item() for kind in (SINGLE_LABEL, MULTI_LABEL, REGRESSION)]
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


def text_of(top: Sequence[tuple[str, float]], problem_type: str | None) -> str:
    """Return a prediction in words: of several classes, those that are more probable than not.

    Args:
        top: Classes and their probabilities, the most probable first; or what numbers are called, and the numbers.
        problem_type: What they are.

    Example:
        >>> top = [("push", 0.9), ("hand", 0.4)]
        >>> [text_of(top, kind) for kind in (SINGLE_LABEL, MULTI_LABEL, REGRESSION)]
        ['push 90.0%, hand 40.0%', 'push 90.0%', 'push 0.9, hand 0.4']
        >>> text_of(top[1:], "multi_label_classification")
        'none above 50% (hand 40.0%)'
    """
    if problem_type == REGRESSION:
        return ", ".join(f"{name} {number:.4g}" for name, number in top)
    texts = [f"{name} {probability:.1%}" for name, probability in top]
    if problem_type != MULTI_LABEL:
        return ", ".join(texts)
    likely = [text for text, (_, probability) in zip(texts, top, strict=True) if probability > LIKELY]
    return ", ".join(likely) or f"none above {LIKELY:.0%} ({texts[0]})"


def top_of(values: Tensor, classes: Sequence[str], top_k: int, problem_type: str | None) -> list[tuple[str, float]]:
    """Return the most probable classes and their probabilities, or all numbers.

    Args:
        values: Probabilities or numbers, ``(C,)``.
        classes: What they are of.
        top_k: Number of classes; of several classes per video, all that are more probable than not are returned.
        problem_type: What the values are.

    Example:
        >>> import torch
        >>> top_of(torch.tensor([0.25, 0.75]), ["a", "b"], 1, None)
        [('b', 0.75)]
        >>> top_of(torch.tensor([0.25, 0.75]), ["a", "b"], 1, "regression")
        [('a', 0.25), ('b', 0.75)]
    """
    if problem_type == REGRESSION:
        return list(zip(classes, values.tolist(), strict=True))
    count = max(top_k, int((values > LIKELY).sum())) if problem_type == MULTI_LABEL else top_k
    best = values.topk(min(count, len(classes)))
    return [(classes[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
