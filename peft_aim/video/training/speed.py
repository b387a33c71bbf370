"""Training speed of the model and of the workers that load videos."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


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
    """Measure the training speed, from the second step on; the first one is a warmup.

    What is between two epochs, evaluation and saving, does not count.
    """

    def __init__(self) -> None:
        self.waited = 0.0
        self._began: float | None = None
        self._paused: float | None = None
        self._steps, self._ended, self._clips, self._reading = 0, 0.0, 0, 0.0

    def read(self, seconds: float) -> None:
        """Record the loading time of a clip; 0 is that of a clip that fills up a batch, and does not count."""
        self._clips += seconds > 0
        self._reading += seconds

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock again."""
        if self._began is not None and self._paused is not None:
            self._began += time.perf_counter() - self._paused

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
