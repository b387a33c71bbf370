"""The training loss, by what labels are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_aim.video.data import Sample, class_weights, positive_weights
from peft_aim.video.evaluate import scores_of
from peft_aim.video.problem_type import MULTI_LABEL, REGRESSION
from peft_aim.video.recipe import Recipe


class ClipLoss:
    """The loss, averaged over the readable clips of a step, however these are split into parts.

    It is the cross-entropy for one class per video; the binary cross-entropy for several, averaged over classes; and
    the squared error for numbers, averaged over them.

    Args:
        smoothing: Label smoothing, the fraction of the target that is spread over all classes; for several classes per
            video, over yes and no.
        weights: Weight of the loss by true class, ``(classes,)``; None weights all clips alike.
        problem_type: What labels are; None is one class per video.
    """

    def __init__(self, smoothing: float, weights: Tensor | None = None, problem_type: str | None = None) -> None:
        self.smoothing, self.weights, self.problem_type = smoothing, weights, problem_type

    @classmethod
    def of(cls, recipe: Recipe, videos: Sequence[Sample], outputs: int, problem_type: str | None) -> ClipLoss:
        """Return the loss of a recipe.

        Args:
            recipe: The recipe.
            videos: The training videos.
            outputs: Number of outputs of the model.
            problem_type: What labels are.
        """
        weights = None
        if recipe.balance == "loss":
            weigh = positive_weights if problem_type == MULTI_LABEL else class_weights
            weights = weigh([video.label for video in videos], outputs)
        return cls(recipe.label_smoothing, weights, problem_type)

    def __call__(self, output: Any, targets: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Compute the loss.

        Args:
            output: Output of the model, with scores ``(B, C)``.
            targets: Target probabilities or numbers ``(B, C)``, all NaN for clips that cannot be read.
            num_items_in_batch: Number of readable clips in the whole step, over all processes and parts; None counts
                those of ``targets``.
        """
        readable = ~targets.isnan().any(-1)
        losses = self._of_clips(scores_of(output).float(), targets.nan_to_num())
        count = readable.sum() if num_items_in_batch is None else num_items_in_batch
        return (losses * readable).sum() / torch.as_tensor(count).clamp(min=1)

    def _of_clips(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each clip, ``(B,)``."""
        weights = None if self.weights is None else self.weights.to(targets)
        if self.problem_type == REGRESSION:
            return F.mse_loss(scores, targets, reduction="none").mean(-1)
        if self.problem_type == MULTI_LABEL:
            targets = targets * (1 - self.smoothing) + self.smoothing / 2
            return F.binary_cross_entropy_with_logits(scores, targets, pos_weight=weights, reduction="none").mean(-1)
        losses = F.cross_entropy(scores, targets, label_smoothing=self.smoothing, reduction="none")
        # Of the whole clip: cross_entropy's own weights would also reweight the smoothed part.
        return losses if weights is None else losses * (targets @ weights)


def check_recipe(recipe: Recipe, problem_type: str | None) -> None:
    """Check that all options of a recipe have a meaning for the labels.

    Raises:
        ValueError: If one has none.

    Example:
        >>> check_recipe(Recipe(mixup=0.2, label_smoothing=0.1), "regression")
        Traceback (most recent call last):
        ...
        ValueError: label_smoothing=0.1 is about classes, but the labels are numbers ...
    """
    kind = f"(problem_type={problem_type!r})"
    if problem_type == MULTI_LABEL and recipe.balance == "sampling":
        raise ValueError(
            f"balance='sampling' is not for several classes per video {kind}: videos are drawn by their one class. "
            "Give balance='loss', or leave it out."
        )
    if problem_type == REGRESSION:
        flipped = recipe.flip and recipe.flip_pairs
        given = {"balance": recipe.balance != "none", "label_smoothing": recipe.label_smoothing, "flip_pairs": flipped}
        wrong = [f"{name}={getattr(recipe, name)!r}" for name, value in given.items() if value]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} is about classes, but the labels are numbers {kind}. Leave it out.")
