"""Checkpoints to resume a training from: which are complete, and a new one upon Ctrl-C."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_aim.video.backbones import Source
from peft_aim.video.data import Data
from peft_aim.video.processes import gather, processes
from peft_aim.video.recipe import Recipe

COMPLETE = "complete"  # a file that is written last, with the reasons why videos could not be read
WRITTEN = (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME, "report.json", "evaluation.json", "confusion.png")


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


@dataclass(frozen=True)
class Run:
    """A training that writes to a folder, and that is to be resumed with its own settings only.

    Attributes:
        output: The folder.
        settings: All that must be the same when it is resumed.
    """

    output: Path
    settings: dict[str, Any]

    @classmethod
    def of(cls, output: Path, data: Data, source: Source, recipe: Recipe, **further: Any) -> Run:
        """Note the settings of a training; how many workers read doesn't matter."""
        named = {"model": asdict(source), "classes": data.classes, "videos": data.fingerprint, **further}
        settings = {**named, **asdict(replace(recipe, workers=0))}
        return cls(output, json.loads(json.dumps(settings, default=str)))

    @property
    def folder(self) -> Path:
        """Where its checkpoints are."""
        return self.output / "checkpoints"

    @property
    def _note(self) -> Path:
        return self.folder / "run.json"

    def check(self, resume: bool, overwrite: bool) -> None:
        """Check that nothing is lost by writing to the folder, and that a resumed run goes on as it has begun.

        Raises:
            ValueError: If it is a file, has something in it that is not to be overwritten, or a run of other settings.
        """
        if not processes().is_main_process:
            return
        if not resume:
            check_output(self.output, overwrite, can_resume=self._note.is_file())
            return
        if not self._note.is_file():
            raise ValueError(f"There is nothing to resume in {self.output}: no training that was interrupted.")
        begun = json.loads(self._note.read_text())
        other = {name: value for name, value in begun.items() if self.settings.get(name) != value}
        if other:
            was = ", ".join(f"{name}={value!r}" for name, value in other.items())
            raise ValueError(f"The training in {self.output} was begun with {was}. Resume it with the same settings.")

    def begin(self) -> None:
        """Take away what an earlier training has left, and note the settings."""
        if processes().is_main_process:
            shutil.rmtree(self.folder, ignore_errors=True)
            for name in WRITTEN:
                (self.output / name).unlink(missing_ok=True)
            self.folder.mkdir(parents=True)
            self._note.write_text(json.dumps(self.settings, indent=2))

    def end(self) -> None:
        """Take away the checkpoints, once the adapter is there.

        Raises:
            RuntimeError: If it isn't.
        """
        if not (self.output / SAFETENSORS_WEIGHTS_NAME).is_file():
            raise RuntimeError(f"No adapter was written to {self.output}; what was learned is in {self.folder}.")
        shutil.rmtree(self.folder)


class MarkComplete(TrainerCallback):
    """Marks each checkpoint once all processes have written their part: a killed one leaves it without the mark.

    Args:
        skipped: Why videos could not be read so far; kept with the checkpoint.
    """

    def __init__(self, skipped: Iterable[str]) -> None:
        self.skipped = skipped

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint that has just been written."""
        reasons = gather(self.skipped)
        processes().wait_for_everyone()
        if state.is_world_process_zero:
            complete = Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE
            complete.with_suffix(".tmp").write_text(json.dumps(reasons))
            complete.with_suffix(".tmp").rename(complete)


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

    def give_back(self) -> None:
        """Give Ctrl-C back, however the training has ended."""
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
