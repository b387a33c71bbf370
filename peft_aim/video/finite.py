"""Numbers that are NaN or infinite: in weights, and in scores, which are then never taken for a prediction."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class NotFinite(ValueError):  # noqa: N818 (the weights or the precision are at fault)
    """Raised if class scores are NaN or infinite."""


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of the weights that have values that are NaN or infinite.

    Example:
        >>> not_finite({"up": torch.tensor([1.0, float("nan")]), "down": torch.zeros(2)}.items())
        ['up']
    """
    return [name for name, tensor in weights if not torch.isfinite(tensor).all()]


def why_not_finite(what: str, model: nn.Module, numbers: str = "class scores") -> str:
    """Return in words that class scores, or other numbers, are NaN or infinite, and why.

    Args:
        what: What the scores are of, "3 of 4 clips" for example.
        model: The model that they come from, in which the cause is looked for.
        numbers: What they are.
    """
    what = f"The {numbers} of {what} are NaN or infinite, so they predict nothing"
    wrong = not_finite(model.named_parameters())
    if wrong:
        return (
            f"{what}: {len(wrong)} weights of the model are NaN or infinite, {wrong[0]} for example. Load other "
            "weights, or train the adapter again with a lower --lr."
        )
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return (
        f"{what}: all weights are finite, but numbers overflow in {dtype}. Load the backbone in float32, or train the "
        "adapter again with a lower --lr."
    )
