"""Checkpoints to resume a training from: which are complete, and a new one upon Ctrl-C."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_aim.video.backbones import Source
from peft_aim.video.processes import processes
from peft_aim.video.recipe import Recipe

COMPLETE = "complete"  # an empty file that is written last


def check_output(output: Path, overwrite: bool, can_resume: bool = False) -> None:
    """Check that nothing is lost by writing to a folder.

    Raises:
        ValueError: If it is a file, or has something in it that is not to be overwritten.
    """
    if output.is_file():
        raise ValueError(f"The output {output} is a file. Give a folder.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        hint = ", or go on with the training in it with --resume" if can_resume else ""
        raise ValueError(f"The output {output} is not empty. Give another folder, or allow it with --overwrite{hint}.")


def begin_run(output: Path, recipe: Recipe, source: Source, classes: list[str], resume: bool, overwrite: bool) -> None:
    """Check that nothing is lost by writing to a folder, and that a resumed run goes on as it has begun.

    Raises:
        ValueError: If it is a file, has something in it that is not to be overwritten, or a run of other settings.
    """
    if not processes().is_main_process:
        return
    wish = {"model": asdict(source), "classes": classes, **asdict(replace(recipe, workers=0))}
    wish = json.loads(json.dumps(wish))
    note = output / "checkpoints" / "run.json"
    if resume:
        if not note.is_file():
            raise ValueError(f"There is nothing to resume in {output}: no training that was interrupted.")
        begun = json.loads(note.read_text())
        other = {name: value for name, value in begun.items() if wish.get(name) != value}
        if other:
            was = ", ".join(f"{name}={value!r}" for name, value in other.items())
            raise ValueError(f"The training in {output} was begun with {was}. Resume it with the same settings.")
        return
    check_output(output, overwrite, can_resume=note.is_file())
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps(wish, indent=2))


class MarkComplete(TrainerCallback):
    """Marks each checkpoint once all processes have written their part: a killed one leaves it without the mark."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint that has just been written."""
        processes().wait_for_everyone()
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def last_complete(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a folder, and delete those that are not complete.

    Example:
        >>> last_complete(Path("no/such/folder")) is None
        True
    """
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / COMPLETE).exists():
            complete.append(checkpoint)
        elif processes().is_local_main_process:
            shutil.rmtree(checkpoint, ignore_errors=True)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class SaveOnInterrupt(TrainerCallback):
    """Upon Ctrl-C finishes the step, saves a checkpoint and ends the training; upon another one ends at once.

    Several processes would stop at different steps and wait for each other forever: these end at once, too.

    Attributes:
        happened: Whether it was interrupted.
    """

    def __init__(self) -> None:
        self.happened = False
        self._before: Any = None

    def on_train_begin(self, args: TrainingArguments, *others: Any, **kwargs: Any) -> None:
        """Take over Ctrl-C, which only a program's main thread can."""
        if args.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Give it back."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save and stop if Ctrl-C was pressed."""
        if self.happened:
            control.should_save = control.should_training_stop = True
        return control

    def _note(self, *args: Any) -> None:
        self.happened = True
        signal.signal(signal.SIGINT, self._before)
