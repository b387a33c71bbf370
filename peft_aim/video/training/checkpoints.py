"""Checkpoints to resume training from: marking complete ones, and saving one on Ctrl-C."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_aim.files import write_atomically
from peft_aim.video.backbones import Source
from peft_aim.video.data import Data, Remarks, listed
from peft_aim.video.output import check_output, check_writable, missing, raise_if_full, remove_empty
from peft_aim.video.problem_type import SINGLE_LABEL
from peft_aim.video.processes import processes
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.changes import changes
from peft_aim.video.training.curve import is_whole
from peft_aim.video.training.logs import TENSORBOARD

COMPLETE = "complete"  # written last; holds what was noticed about the videos so far
WRITTEN = (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME, "report.json", "evaluation.json", "confusion.png", "curve.png")


@dataclass(frozen=True)
class Run:
    """A training run that writes to a folder and can only be resumed with the same settings.

    Attributes:
        output: The output folder.
        settings: All settings that must be the same when it is resumed.
        videos: The videos, see :func:`peft_aim.video.data.listed`.
    """

    output: Path
    settings: dict[str, Any]
    videos: str

    @classmethod
    def of(cls, output: Path, data: Data, source: Source, recipe: Recipe, **further: Any) -> Run:
        """Collect the settings of a run, except for the number of workers, which does not affect the results."""
        named = {"model": asdict(source), "classes": data.classes, "videos": data.fingerprint, **further}
        named |= {"problem_type": data.problem_type} if data.problem_type != SINGLE_LABEL else {}
        settings = {**named, **asdict(replace(recipe, workers=0))}
        return cls(output, json.loads(json.dumps(settings, default=str)), listed(data))

    @property
    def folder(self) -> Path:
        """Folder of the checkpoints."""
        return self.output / "checkpoints"

    @property
    def _note(self) -> Path:
        return self.folder / "run.json"

    @property
    def _list(self) -> Path:
        return self.folder / "videos.txt"

    def check(self, resume: bool, overwrite: bool) -> None:
        """Check that the run overwrites nothing, or that it can be resumed with the same settings.

        Raises:
            ValueError: If the output cannot be written to, or is not empty and ``overwrite`` is False; with
                ``resume``, if it holds no interrupted run, or one with other settings or videos.
        """
        if not resume:
            check_output(self.output, overwrite, can_resume=self._note.is_file())
            return
        check_writable(self.output)
        if not self._note.is_file():
            raise ValueError(
                f"Nothing to resume in {self.output}: it holds no interrupted training run. Start one without "
                "--resume."
            )
        started = json.loads(self._note.read_text())
        other = {name: value for name, value in started.items() if self.settings.get(name) != value}
        if "videos" in other and self._list.is_file():  # earlier versions wrote none
            before = self._list.read_bytes().decode("utf-8", "surrogateescape")
            raise ValueError(
                f"The training run in {self.output} was started with other videos: {changes(before, self.videos)}. "
                "Resume it with the same videos and labels, or train again with --overwrite."
            )
        if other:
            was = ", ".join(f"{name}={value!r}" for name, value in other.items())
            raise ValueError(
                f"The training run in {self.output} was started with {was}. Resume it with the same settings."
            )

    def begin(self) -> None:
        """Delete the files of an earlier run in the folder, and write the settings."""
        if processes().is_main_process:
            for folder in (self.folder, self.output / TENSORBOARD):
                shutil.rmtree(folder, ignore_errors=True)
            for name in WRITTEN:
                (self.output / name).unlink(missing_ok=True)
            self.folder.mkdir(parents=True)
            write_atomically(self._list, self.videos.encode("utf-8", "surrogateescape"))
            write_atomically(self._note, json.dumps(self.settings, indent=2))

    @contextmanager
    def failing_well(self) -> Iterator[None]:
        """Remove the new folders that an error leaves without a complete checkpoint, so that none is in the way later.

        What was there before stays, and so does a run that was interrupted by Ctrl-C.

        Raises:
            OSError: If the disk is full, with what to do about it.
        """
        new = missing(self.folder)
        inner = [folder for folder in (self.folder, self.output / TENSORBOARD) if not folder.exists()]
        try:
            yield
        except Exception as error:
            left = last_complete(self.folder)
            if processes().is_main_process and left is None:
                for folder in inner:
                    shutil.rmtree(folder, ignore_errors=True)
                remove_empty(new)
            raise_if_full(error, self.output, "continue with --resume" if left else "train again")
            raise

    def end(self) -> None:
        """Delete the checkpoints, once the adapter is saved.

        Raises:
            RuntimeError: If the adapter is not in the output folder.
        """
        if not (self.output / SAFETENSORS_WEIGHTS_NAME).is_file():
            raise RuntimeError(f"No adapter was written to {self.output}. The trained weights are in {self.folder}.")
        shutil.rmtree(self.folder)


class MarkComplete(TrainerCallback):
    """Mark each checkpoint as complete once all processes have written their part, which a killed process never does.

    Earlier checkpoints are deleted only then, except for the best one. transformers' ``save_total_limit`` would delete
    them before, and so could leave a killed run without the best.

    Args:
        remarks: What was noticed about the videos so far; saved with the checkpoint.
    """

    def __init__(self, remarks: Remarks) -> None:
        self.remarks = remarks

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint that was written last, and delete those that are no longer needed."""
        remarks = self.remarks.gathered()
        processes().wait_for_everyone()
        if state.is_world_process_zero:
            complete = Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE
            write_atomically(complete, json.dumps(remarks.texts))
            needed = {complete.parent.name, Path(state.best_model_checkpoint or "").name}
            for checkpoint in Path(args.output_dir).glob("checkpoint-*"):
                if checkpoint.name not in needed:
                    shutil.rmtree(checkpoint, ignore_errors=True)


def last_complete(folder: Path) -> Path | None:
    """Return the last complete checkpoint in a folder, None if there is none, and delete incomplete ones.

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
    """On Ctrl-C, finish the step, save a checkpoint and stop training; on a second Ctrl-C, stop at once.

    With several processes the first Ctrl-C stops at once, too: they would stop at different steps and wait for each
    other forever.

    Attributes:
        happened: Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.happened = False
        self._before: Any = None

    def on_train_begin(self, args: TrainingArguments, *others: Any, **kwargs: Any) -> None:
        """Install the handler of Ctrl-C, which only the main thread can do."""
        if args.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)

    def give_back(self) -> None:
        """Restore the previous handler of Ctrl-C."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Stop if Ctrl-C was pressed, and save unless the epoch ends here, which saves anyway."""
        if self.happened:
            control.should_training_stop = True
            control.should_log = control.should_save = not is_whole(state.epoch)
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Leave out what follows an epoch if it was not finished."""
        if not is_whole(state.epoch):
            control.should_log = control.should_evaluate = control.should_save = False
        return control

    def _note(self, *args: Any) -> None:
        self.happened = True
        signal.signal(signal.SIGINT, self._before)
