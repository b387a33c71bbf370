"""transformers' Trainer for clips, with its loss, mixup, skipped videos and training speed."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_aim.tracing import first_parameter
from peft_aim.video.data import IGNORED, TrainingClips, mixed
from peft_aim.video.evaluate import scores_of


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate clips to a batch; loading times and reasons for skipping go to "notes", which stays on the CPU."""
    notes = [(item.pop("seconds"), item.pop("skipped")) for item in items]
    return {**default_collate(items), "notes": notes}


class ClipLoss:
    """Cross-entropy, averaged over the readable clips of a step, however these are split into parts.

    Args:
        smoothing: Label smoothing, the fraction of the target that is spread over all classes.
    """

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def __call__(self, output: Any, targets: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Compute the loss.

        Args:
            output: Output of the model, with scores ``(B, classes)``.
            targets: Target probabilities ``(B, classes)``, all 0 for clips that cannot be read.
            num_items_in_batch: Number of readable clips in the whole step, over all processes and parts; None counts
                those of ``targets``.
        """
        losses = F.cross_entropy(scores_of(output).float(), targets, label_smoothing=self.smoothing, reduction="none")
        readable = targets.sum(-1) > 0
        count = readable.sum() if num_items_in_batch is None else num_items_in_batch
        return (losses * readable).sum() / torch.as_tensor(count).clamp(min=1)


class ClipTrainer(Trainer):
    """transformers' Trainer for any adapted model.

    Args:
        model: The adapted model.
        arguments: Arguments of the Trainer.
        clips: The training clips.
        smoothing: Label smoothing.
        mixup: Mixup alpha; 0 turns mixup off.

    Attributes:
        skipped: Why videos could not be read, in the order of occurrence.
        readable: Number of readable clips so far, over all processes.
        speed: Measures the training speed.
    """

    def __init__(
        self, model: PeftModel, arguments: TrainingArguments, clips: Dataset, smoothing: float, mixup: float
    ) -> None:
        loss = ClipLoss(smoothing)
        super().__init__(model, arguments, collate, train_dataset=clips, compute_loss_func=loss)
        self.model_accepts_loss_kwargs = False  # backbones take images only
        self.argument = first_parameter(model.get_base_model())
        self.classes = model.active_peft_config.num_labels
        self.mixup = v2.MixUp(alpha=mixup, num_classes=self.classes) if mixup else None
        self.skipped: dict[str, None] = {}
        self.readable = 0
        self.speed = SpeedCallback()
        self.add_callback(self.speed)
        self.add_callback(_Reproducible(clips))
        self.add_callback(StopIfNothingCanBeRead(self))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """Return the batches of a step; record the time spent waiting for them, and the clips that cannot be read."""
        began = time.perf_counter()
        batches, count = super().get_batch_samples(*args, **kwargs)
        self.speed.waited += time.perf_counter() - began
        for batch in batches:
            for seconds, reason in batch.pop("notes"):
                self.speed.read(seconds)
                self.skipped |= {reason: None} if reason else {}
        self.readable += 0 if count is None else int(count)
        return batches, count

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Compute the loss of a batch, with mixup if it is on."""
        clips, labels = inputs["clips"], inputs["labels"]
        readable = labels != IGNORED
        targets = F.one_hot(labels.clamp(min=0), self.classes).float() * readable[:, None]
        if self.mixup is not None and readable.sum() > 1:
            blended, soft = self.mixup(tv_tensors.Video(clips[readable]), labels[readable])
            clips, targets = clips.clone(), targets.clone()
            clips[readable], targets[readable] = blended.as_subclass(Tensor), soft
        return super().compute_loss(model, {self.argument: clips, "labels": targets}, return_outputs, **kwargs)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save the adapter, without PEFT's warnings that it cannot look up text embeddings of the backbone."""
        with warnings.catch_warnings():
            for message in ("Could not find a config file in", "Unable to fetch remote file"):
                warnings.filterwarnings("ignore", message=message)
            super().save_model(*args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Exclude the temporal embedding from weight decay, like biases and norms."""
        return [name for name in super().get_decay_parameter_names(model) if "_embedding" not in name]


@dataclass(frozen=True)
class Speed:
    """Training speed.

    Attributes:
        step_seconds: Seconds per step, without waiting for data.
        model_clips_per_second: Clips per second that the model can train on, over all processes.
        loader_clips_per_second: Clips per second that the workers can load, over all processes; None if none were
            loaded.
        waiting: Fraction of the time spent waiting for data.
    """

    step_seconds: float
    model_clips_per_second: float
    loader_clips_per_second: float | None
    waiting: float

    def __str__(self) -> str:
        loader = self.loader_clips_per_second
        loading = f"workers load up to {loader:.1f} clips/s; " if loader else ""
        return (
            f"{loading}the model takes {self.step_seconds:.3f} s per step, {self.model_clips_per_second:.1f} clips/s; "
            f"{self.waiting:.0%} of the time was spent waiting for data"
        )

    def to_dict(self) -> dict[str, float | None]:
        """Return the numbers, rounded."""
        return {name: value and round(value, 4) for name, value in asdict(self).items()}


class SpeedCallback(TrainerCallback):
    """Measure the training speed, from the second step on; the first one is a warmup."""

    def __init__(self) -> None:
        self.waited = 0.0
        self._began: float | None = None
        self._steps, self._ended, self._clips, self._reading = 0, 0.0, 0, 0.0

    def read(self, seconds: float) -> None:
        """Record the loading time of a clip; 0 is that of a clip that fills up a batch, and does not count."""
        self._clips += seconds > 0
        self._reading += seconds

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the end of a step."""
        now = time.perf_counter()
        if self._began is None:
            self._began, self.waited = now, 0.0
        else:
            self._steps, self._ended = self._steps + 1, now

    def result(self, args: TrainingArguments) -> Speed | None:
        """Return the training speed, None if there were fewer than two steps."""
        if not self._steps:
            return None
        whole = self._ended - self._began
        waited = min(self.waited, whole)
        step = max(whole - waited, 1e-9) / self._steps
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        workers = max(1, args.dataloader_num_workers) * args.world_size
        loader = workers * self._clips / self._reading if self._reading else None
        return Speed(step, batch / step, loader, waited / whole)


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
            raise ValueError(f"None of the training videos can be read. {next(iter(self.trainer.skipped), '')}")


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
