"""What training prints: a progress bar, and a line for each epoch."""

from __future__ import annotations

import time
from typing import Any

from tqdm import tqdm
from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from peft_aim.video.metrics import Measure
from peft_aim.video.processes import say
from peft_aim.video.training.curve import curve, is_whole


class Progress(ProgressCallback):
    """transformers' progress bar, with a line for each epoch in place of the logs.

    Args:
        measure: The metric of the val split.
    """

    def __init__(self, measure: Measure) -> None:
        super().__init__()
        self._measure = measure

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock of the whole training, from which the time left is computed."""
        super().on_train_begin(args, state, control, **kwargs)
        self._began, self._first = time.perf_counter(), state.global_step

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock of an epoch."""
        self._epoch_began, self._first_of_epoch = time.perf_counter(), state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the speed of an epoch, without evaluation."""
        clips = (state.global_step - self._first_of_epoch) * args.train_batch_size * args.world_size
        clips *= args.gradient_accumulation_steps
        self._speed = clips / (time.perf_counter() - self._epoch_began)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Print no logs."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print the line of an epoch, once it is evaluated and saved."""
        if not is_whole(state.epoch):  # Ctrl-C
            return
        point = curve(state.log_history, self._measure)[-1]
        value = point[self._measure.key]
        result = "" if value is None else f"   val {self._measure.text(value)}"
        a_step = (time.perf_counter() - self._began) / (state.global_step - self._first)
        left = tqdm.format_interval(a_step * (state.max_steps - state.global_step))
        line = f"epoch {point['epoch']}/{state.num_train_epochs:.0f}   loss {point['loss']:.4g}{result}"
        with tqdm.external_write_mode():  # the bar would end up on the same line
            say(f"{line}   {self._speed:.1f} clips/s   {left} left")
