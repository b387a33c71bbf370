"""Training clips that follow others without a break, as those of a stream that runs on.

A causal adapter that only sees clips from their start on learns the order of frames from the temporal embedding, which
is the same for all frames of a stream but the first ones. From clips that follow others, it learns to do without.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peft_aim.video.data import mixed
from peft_aim.video.recipe import Recipe

DEFAULT = 0.5  # for causal adapters


def preceded_fraction(recipe: Recipe, causal: bool) -> float:
    """Return the fraction of the steps in which clips follow others: as a recipe gives it, or the default.

    Args:
        recipe: The recipe.
        causal: Whether the adapter is causal.

    Raises:
        ValueError: If it is not, and a fraction is given.

    Example:
        >>> preceded_fraction(Recipe(), causal=True), preceded_fraction(Recipe(), causal=False)
        (0.5, 0.0)
    """
    if recipe.preceded and not causal:
        raise ValueError(
            f"preceded={recipe.preceded} is for causal adapters: frames of others would attend to those of the clip "
            "before as to their own. Set causal=True (--causal), or leave preceded out."
        )
    return DEFAULT * causal if recipe.preceded is None else recipe.preceded


def is_preceded(fraction: float, seed: int, step: int) -> bool:
    """Return whether the clips of a step follow others, in all processes and parts of the step alike.

    Example:
        >>> sum(is_preceded(0.5, 0, step) for step in range(1000))
        482
    """
    return bool(torch.rand((), generator=torch.Generator().manual_seed(mixed(seed, step))) < fraction)


def after_others(clips: Tensor) -> Tensor:
    """Put another clip of a batch before each, ``(B, T, C, H, W) -> (B, 2T, C, H, W)``.

    A causal model averages the scores of the later one alone.

    Example:
        >>> after_others(torch.tensor([[1], [2], [3]])).tolist()
        [[3, 1], [1, 2], [2, 3]]
    """
    return torch.cat([clips.roll(1, dims=0), clips], dim=1)
