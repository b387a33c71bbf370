"""Stop training once the loss or the weights are not finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_aim.video.finite import not_finite
from peft_aim.video.processes import gather
from peft_aim.video.training.checkpoints import last_complete


class StopIfNotFinite(TrainerCallback):
    """Stop training before a step whose loss is NaN or infinite changes the weights.

    Args:
        trainer: The trainer, which adds up the loss of a step.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the loss of a step, once for all of its parts and on all processes alike.

        Raises:
            ValueError: If it is not finite.
        """
        loss = float(self.trainer.accelerator.reduce(self.trainer.step_loss.clone(), "mean"))
        self.trainer.step_loss.zero_()
        if not math.isfinite(loss):
            step = state.global_step + 1
            raise ValueError(f"The loss of step {step} is {loss}, so training stopped there. {advice(args)}")


def check_finite(model: nn.Module, state: TrainerState, args: TrainingArguments) -> None:
    """Check that all trained weights are finite, on all processes alike, so that no others are ever saved.

    Raises:
        ValueError: If some are NaN or infinite.
    """
    wrong = not_finite((name, p) for name, p in model.named_parameters() if p.requires_grad)
    wrong = gather(wrong)  # a process may have only a part of the weights
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights are NaN or infinite after step {state.global_step}, {wrong[0]} for example, so "
            f"training stopped there. {advice(args)}"
        )


def advice(args: TrainingArguments) -> str:
    """Return which checkpoint is left after numbers were not finite, and what to try."""
    checkpoint = last_complete(Path(args.output_dir))
    last = (
        f"The last checkpoint, {checkpoint}, has finite weights, but can only be resumed with the same settings. "
        "Train again with --overwrite and"
        if checkpoint
        else "There is no checkpoint yet. Train again with"
    )
    tries = [f"a lower --lr (the peak learning rate is {args.learning_rate:g})"]
    tries += ["--max-grad-norm 1"] if not args.max_grad_norm else []
    tries += ["--precision fp32"] if args.bf16 or args.fp16 else []
    return f"{last} {' or '.join(tries)}."
