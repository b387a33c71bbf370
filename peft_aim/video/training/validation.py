"""Evaluation of the val videos while training: on what, and how often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_aim.video.data import Data, Sample
from peft_aim.video.description import Description
from peft_aim.video.evaluate import Evaluation, evaluate_model
from peft_aim.video.recipe import Recipe

MOST = 25  # evaluations: a small data set has many short epochs


@dataclass(frozen=True)
class Validation:
    """What an adapter is evaluated on.

    Attributes:
        videos: The val videos.
        interval: After how many epochs to evaluate.
        description: Description of the adapter.
        recipe: Training recipe.
    """

    videos: Sequence[Sample]
    interval: int
    description: Description
    recipe: Recipe

    @classmethod
    def of(cls, data: Data, description: Description, recipe: Recipe) -> Validation:
        """Evaluate as often as it costs about half of training at most, and 25 times at most.

        Most of the cost of a video is that of loading it, which is the same in training and evaluation.
        """
        cheap = math.ceil(2 * len(data.val) / len(data.train))
        return cls(data.val, max(cheap, math.ceil(recipe.epochs / MOST)), description, recipe)

    def run(self, model: nn.Module, views: tuple[int, int] | None, batch_size: int, in_orders: bool) -> Evaluation:
        """Evaluate a model, see :func:`peft_aim.video.evaluate.evaluate_model`."""
        recipe = self.recipe
        return evaluate_model(
            model, self.description, self.videos, views, batch_size, recipe.workers, recipe.min_frames, in_orders
        )


class EvaluateEvery(TrainerCallback):
    """Evaluate after every so many epochs, and after the last one.

    Args:
        epochs: The number of epochs.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Leave out the evaluations in between."""
        epoch = round(state.epoch)
        if epoch % self.epochs and epoch < args.num_train_epochs:
            control.should_evaluate = False
        return control
