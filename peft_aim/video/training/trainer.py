"""transformers' Trainer for clips, with its loss, mixup, evaluation and skipped videos."""

from __future__ import annotations

import time
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from peft_aim.layers import is_decayed
from peft_aim.tracing import first_parameter
from peft_aim.video.data import IGNORED, Remarks, TrainingClips, mixed
from peft_aim.video.evaluate import Evaluation
from peft_aim.video.finite import NotFinite
from peft_aim.video.metrics import measure_of
from peft_aim.video.training.finite import StopIfNotFinite, advice, check_finite
from peft_aim.video.training.loss import ClipLoss
from peft_aim.video.training.normalized import Normalization
from peft_aim.video.training.preceded import after_others, is_preceded
from peft_aim.video.training.progress import Progress
from peft_aim.video.training.speed import SpeedCallback
from peft_aim.video.training.validation import EvaluateEvery, Validation


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate clips to a batch; loading times stay numbers, which no device has to hold."""
    seconds = [item.pop("seconds") for item in items]
    return {**default_collate(items), "seconds": seconds}


class ClipTrainer(Trainer):
    """transformers' Trainer for any adapted model.

    Args:
        model: The adapted model.
        arguments: Arguments of the Trainer.
        clips: The training clips.
        loss: The loss.
        mixup: Mixup alpha; 0 turns mixup off.
        preceded: Fraction of the steps in which every clip follows another one, for causal adapters.
        validation: The val videos, to evaluate on after an epoch; None never evaluates.
        numbers: How the numbers that videos are labeled with are normalized; None if they are labeled with classes.

    Raises:
        ValueError: If numbers are to be trained with FSDP.

    Attributes:
        remarks: What was noticed about the videos so far, on this process.
        readable: Number of readable clips so far, over all processes.
        step_loss: Loss of the parts of a step so far, on this process.
        speed: Measures the training speed.
    """

    def __init__(
        self,
        model: PeftModel,
        arguments: TrainingArguments,
        clips: Dataset,
        loss: ClipLoss,
        mixup: float = 0.0,
        preceded: float = 0.0,
        validation: Validation | None = None,
        numbers: Normalization | None = None,
    ) -> None:
        held_out = validation and validation.videos
        super().__init__(model, arguments, collate, clips, held_out, compute_loss_func=loss)
        if numbers and self.is_fsdp_enabled:
            raise ValueError(
                "problem_type='regression' cannot be trained with FSDP, which splits the head that the units of the "
                "numbers are folded into. Launch without FSDP."
            )
        self.validation = validation
        self.model_accepts_loss_kwargs = False  # backbones take images only
        self.argument = first_parameter(model.get_base_model())
        self.measure = measure_of(model.active_peft_config.problem_type)
        self.numbers = numbers
        self.mixup = v2.MixUp(alpha=mixup) if mixup else None
        self.preceded = preceded
        self.remarks = Remarks()
        self.readable = 0
        self.step_loss = torch.zeros((), device=arguments.device)
        self.speed = SpeedCallback()
        self.remove_callback(ProgressCallback)
        self.add_callback(Progress(self.measure))
        self.add_callback(self.speed)
        self.add_callback(_Reproducible(clips))
        self.add_callback(StopIfNothingCanBeRead(self))
        self.add_callback(StopIfNotFinite(self))
        if validation:
            self.add_callback(EvaluateEvery(validation.interval))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """Return the batches of a step; record the time spent waiting for them, and the clips that cannot be read."""
        began = time.perf_counter()
        batches, count = super().get_batch_samples(*args, **kwargs)
        self.speed.waited += time.perf_counter() - began
        for batch in batches:
            self.remarks.take(batch)
            for seconds in batch.pop("seconds"):
                self.speed.read(seconds)
        self.readable += 0 if count is None else int(count)
        return batches, count

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Compute the loss of a batch, with mixup if it is on; clips may follow others, whose scores do not count."""
        clips, readable = inputs["clips"], inputs["labels"] != IGNORED
        targets = self.numbers.normalized(inputs["targets"]) if self.numbers else inputs["targets"]
        targets = targets.where(readable[:, None], torch.nan)
        if self.mixup is not None and readable.sum() > 1:
            blended, soft = self.mixup(tv_tensors.Video(clips[readable]), targets[readable])
            clips, targets = clips.clone(), targets.clone()
            clips[readable], targets[readable] = blended.as_subclass(Tensor), soft
        if is_preceded(self.preceded, self.args.seed, self.state.global_step):
            clips = after_others(clips)
        return super().compute_loss(model, {self.argument: clips, "labels": targets}, return_outputs, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Train on a part of a step, and add its loss to that of the step."""
        loss = super().training_step(*args, **kwargs)
        self.step_loss += loss
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate a single view of the val videos.

        Returns:
            ``{"eval_top1": float, "eval_mean_class": float}``, ``{"eval_map": float}`` or ``{"eval_mae": float,
            "eval_r2": float}``, by what labels are, and the epoch.
        """
        with self.numbers.folded(self.model) if self.numbers else nullcontext():
            single = self.validate((1, 1)).best
        metrics = {f"eval_{name}": value for name, value in single.logged.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def validate(self, views: tuple[int, int] | None = None) -> Evaluation:
        """Evaluate the adapter on the val videos.

        Args:
            views: Clips per video and crops per frame; None uses those of the recipe, as after training, and also
                tests what a single view scores with its frames in other orders.

        Raises:
            ValueError: If not all of its weights, or not all scores are finite.
        """
        check_finite(self.model, self.state, self.args)
        # FSDP needs the wrapped model; otherwise unwrap it, so that nothing is compiled for the shapes of evaluation
        whole = self.model_wrapped if self.is_fsdp_enabled else self.accelerator.unwrap_model(self.model)
        try:
            in_orders = views is None
            return self.validation.run(whole, views, self.args.per_device_train_batch_size, in_orders)
        except NotFinite as error:
            raise ValueError(f"{error} {advice(self.args)}") from error

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save the adapter, without PEFT's warnings that it cannot look up text embeddings of the backbone.

        Raises:
            ValueError: If not all of its weights are finite.
        """
        check_finite(self.model, self.state, self.args)
        with warnings.catch_warnings():
            for message in ("Could not find a config file in", "Unable to fetch remote file"):
                warnings.filterwarnings("ignore", message=message)
            super().save_model(*args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Exclude the temporal embedding and convolution from weight decay, like biases and norms."""
        decayed = super().get_decay_parameter_names(model)
        return list(filter(is_decayed, decayed))


class StopIfNothingCanBeRead(TrainerCallback):
    """Stop training after an epoch if no clip could be read so far, most likely because paths are wrong.

    Args:
        trainer: The trainer, which counts the readable clips.
    """

    def __init__(self, trainer: ClipTrainer) -> None:
        self.trainer = trainer

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Check that some clips could be read.

        Raises:
            ValueError: If none could.
        """
        if not self.trainer.readable:
            raise ValueError(f"None of the training videos can be read. {''.join(self.trainer.remarks.skipped[:1])}")


class _Reproducible(TrainerCallback):
    """Make the random numbers of a step, in clips and model, depend on seed and step only, so that runs can resume."""

    def __init__(self, clips: Dataset) -> None:
        self.clips = clips

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if isinstance(self.clips, TrainingClips):
            self.clips.epoch.fill_(int(state.epoch + 1e-6))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        torch.manual_seed(mixed(args.seed, state.global_step, args.process_index))
