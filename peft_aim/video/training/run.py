"""Train an AIM adapter on videos with transformers' Trainer, on all devices that accelerate supports.

``accelerate launch -m peft_aim train VIDEOS --model NAME --output DIR`` runs ``peft-aim train`` on several devices.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from peft_aim.video.backbones import Source
from peft_aim.video.data import (
    Data,
    ForTraining,
    NoiseClips,
    Remarks,
    TrainingClips,
    counted,
    mirrored_labels,
    notes_on,
    typical_timing,
    why_unreadable,
)
from peft_aim.video.description import Description
from peft_aim.video.evaluate import Evaluation, NothingToEvaluate
from peft_aim.video.metrics import measure_of
from peft_aim.video.output import printed_if_lost
from peft_aim.video.problem_type import REGRESSION
from peft_aim.video.processes import once, processes, say
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.adapting import adapt, token_width
from peft_aim.video.training.arguments import training_arguments
from peft_aim.video.training.checkpoints import COMPLETE, MarkComplete, Run, SaveOnInterrupt, last_complete
from peft_aim.video.training.curve import curve
from peft_aim.video.training.logs import check_log, keep_logs
from peft_aim.video.training.loss import ClipLoss, check_recipe
from peft_aim.video.training.normalized import Normalization
from peft_aim.video.training.preceded import check_causal
from peft_aim.video.training.report import Report
from peft_aim.video.training.saving import round_weights, save, save_results
from peft_aim.video.training.speed import Speed
from peft_aim.video.training.trainer import ClipTrainer
from peft_aim.video.training.validation import Validation


def train(
    data: Data,
    model: Source | str,
    output: str | Path,
    recipe: Recipe | None = None,
    check: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    log: Sequence[str] = (),
    **aim_options: Any,
) -> tuple[PeftModel, Report]:
    """Train an adapter on videos, evaluate it, and save it with its description and results.

    After an epoch, a single view of the val videos is evaluated; if there are more than half as many of them as
    training videos, after every few epochs only. ``recipe.keep`` chooses which weights are kept.

    Videos that cannot be read are skipped and listed in the report. Checkpoints are written to ``output/checkpoints``
    after each epoch and on Ctrl-C, and deleted at the end.

    Args:
        data: The videos.
        model: The backbone: its name, or where to load it from.
        output: New or empty folder for the adapter, ``report.json`` and ``curve.png``.
        recipe: Training recipe; None uses the defaults of :class:`Recipe`.
        check: Open all videos before training, and report the broken ones.
        resume: Resume from the last complete checkpoint in ``output``.
        overwrite: Write to ``output`` even if it is not empty.
        log: Programs to log loss, learning rate and val top-1 to, by the names of transformers' ``report_to``. The
            files of TensorBoard go to ``output/tensorboard``.
        aim_options: Other options of :class:`peft_aim.AIMConfig`.

    Returns:
        The adapted model and the report.

    Raises:
        ValueError: If the backbone cannot be loaded, ``output`` cannot be written to or is not empty, there is nothing
            to resume, or a run with other settings or videos; if no training video can be read, a program to log to is
            not installed, ``recipe.patience`` is set but no val video can be read, or numbers become NaN or infinite.
        OSError: If a file cannot be written; the report is then printed.
        KeyboardInterrupt: After Ctrl-C, once the checkpoint is written.
    """
    recipe, output = recipe or Recipe(), Path(output)
    source = Source(model) if isinstance(model, str) else model
    check_log(log)
    check_recipe(recipe, data.problem_type)
    numbers = Normalization.of(data.train, data.classes) if data.problem_type == REGRESSION else None
    if recipe.flip:
        mirrored_labels(recipe.flip_pairs, data.classes)
    unreadable = why_not_validated(data, recipe)
    run = Run.of(output, data, source, recipe.with_order(), check=check, options=aim_options)
    once(partial(run.check, resume, overwrite))
    data, checked = readable(data, recipe, check)
    recipe = recipe.for_videos(len(data.train))
    adapted, description = adapt(data, source, recipe, **aim_options)
    recipe = recipe.for_width(token_width(adapted))
    say(plan(data, recipe))
    notes = [*notes_on(data), *precision_note(recipe), *unreadable]
    for note in notes:
        say(f"Note: {note}")
    clips = TrainingClips(data.train, recipe, ForTraining(description.preprocessing, recipe, data.classes))
    validation = Validation.of(data, description, recipe) if data.val and not unreadable else None
    with run.failing_well():
        trainer = new_trainer(adapted, clips, recipe, run.folder, validation, log, numbers)
        keep_logs(trainer, output)
        trainer.remarks.add(checked.texts)
        fit(trainer, run, resume)
        if numbers:
            numbers.fold(adapted)
        if recipe.save_dtype:
            round_weights(adapted, recipe.save_dtype)
        seconds, rate = once(partial(typical_timing, data.train, recipe.fps))
        description = replace(description, seconds=seconds, rate=rate)
        save(trainer, description, output)
        report = evaluated(trainer, adapted, description, recipe, notes)
        if processes().is_main_process:
            write(report, adapted, description, output)
            run.end()
    return adapted, report


def why_not_validated(data: Data, recipe: Recipe) -> list[str]:
    """Return a note if none of the val videos can be read.

    Raises:
        ValueError: If ``recipe.patience`` needs val videos, and there are none or none can be read.
    """
    reason = once(partial(why_unreadable, data.val, recipe.min_frames, recipe.fps))
    if recipe.patience and (reason or not data.val):
        raise ValueError(
            f"patience={recipe.patience} needs val videos, but {reason or 'there is no val split.'} Give a val "
            "split, as a folder or with --val, or leave out patience."
        )
    note = f"None of the {len(data.val)} val videos can be read: the last weights are kept. {reason}"
    return [note] if reason else []


def readable(data: Data, recipe: Recipe, check: bool) -> tuple[Data, Remarks]:
    """Check that some training videos can be read; with ``check``, leave out all that cannot.

    Returns:
        The videos to train on, and what was noticed about them.

    Raises:
        ValueError: If none can be read.
    """
    reason = once(partial(why_unreadable, data.train, recipe.min_frames, recipe.fps))
    if reason:
        raise ValueError(f"None of the {len(data.train)} training videos can be read. {reason}")
    return data.without_broken(recipe) if check else (data, Remarks())


def plan(data: Data, recipe: Recipe) -> str:
    """Return what is about to be trained on, and for how long, in words."""
    what = "number" if data.problem_type == REGRESSION else "class"
    labels = f"{'with' if what == 'number' else 'of'} {counted(data.classes, what)}"
    videos = f"{len(data.train)} videos {labels}, {len(data.val)} val videos"
    epochs = f"{recipe.epochs} epoch{'s' * (recipe.epochs > 1)}"
    return (
        f"Training on {videos}: {epochs} of {recipe.steps(len(data.train))} steps, learning rate {recipe.peak_lr:.3g}"
    )


def fit(trainer: ClipTrainer, run: Run, resume: bool) -> None:
    """Train from the start, or resume from the last complete checkpoint.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once the checkpoint is written.
    """
    interrupt, checkpoint = SaveOnInterrupt(), last_complete(run.folder) if resume else None
    if resume:
        from_start = "No complete checkpoint yet: training from the start"
        say(f"Resuming from {checkpoint}" if checkpoint else from_start)
    else:
        run.begin()
    if checkpoint:
        trainer.remarks.add(Remarks.from_dict(json.loads((checkpoint / COMPLETE).read_text())).texts)
        trainer.readable = 1  # the clips read before count, too
        stop_again(trainer, checkpoint)
    trainer.add_callback(interrupt)
    try:
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    finally:
        interrupt.give_back()
    if interrupt.happened:
        raise KeyboardInterrupt(f"a checkpoint is in {run.folder}; continue with --resume")


def evaluated(
    trainer: ClipTrainer, adapted: PeftModel, description: Description, recipe: Recipe, notes: list[str]
) -> Report:
    """Evaluate the adapter that was saved, and report on its training.

    Args:
        trainer: The trainer, after training.
        adapted: The adapted model.
        description: Description of the adapter.
        recipe: The recipe.
        notes: What is known to limit the results.
    """
    evaluation, more_notes = results(trainer)
    remarks = trainer.remarks.gathered()
    return Report(
        evaluation,
        trained_parameters=adapted.get_nb_trainable_parameters()[0],
        remarks=remarks,
        notes=[*notes, *more_notes, *remarks.notes()],
        speed=trainer.speed.result(trainer.args),
        classes=description.classes,
        recipe=recipe,
        curve=curve(trainer.state.log_history, trainer.measure),
        kept=kept_epoch(trainer),
        measure=trainer.measure,
    )


def results(trainer: ClipTrainer) -> tuple[Evaluation | None, list[str]]:
    """Evaluate the adapter that was saved, and add what is noticed about the val videos to the trainer's remarks.

    Returns:
        The evaluation, and notes. It is None if there are no val videos, or if none can be read any more, which a note
        explains.
    """
    if trainer.validation is None:
        return None, []
    try:
        evaluation, notes = trainer.validate(), []
    except NothingToEvaluate as nothing:
        evaluation, notes = None, [str(nothing)]
        trainer.remarks.add(nothing.remarks.texts)
    else:
        trainer.remarks.add(evaluation.remarks.texts)
    return evaluation, notes


def write(report: Report, adapted: PeftModel, description: Description, output: Path) -> None:
    """Write the report, and add its results to the saved adapter.

    Raises:
        OSError: If a file cannot be written; the report is then printed.
    """
    with printed_if_lost(report, output):
        if report.evaluation:
            results = {"val": report.evaluation.summary()}
            save_results(adapted, replace(description, results=results), output)
        report.write(output)


def stop_again(trainer: ClipTrainer, checkpoint: Path) -> None:
    """Train no further if training had already stopped early at a checkpoint, and was killed afterwards."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    early = state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
    if early and early["attributes"]["early_stopping_patience_counter"] >= early["args"]["early_stopping_patience"]:
        trainer.args.num_train_epochs = round(state.epoch)


def kept_epoch(trainer: ClipTrainer) -> int:
    """Return the epoch of the weights that the model has after training."""
    state = trainer.state
    step = state.best_global_step if state.best_model_checkpoint else state.global_step
    return round(step * state.num_train_epochs / state.max_steps)


def measure_speed(data: Data, model: Source | str, recipe: Recipe, steps: int = 20, **aim_options: Any) -> Speed:
    """Train on noise to measure the speed of the model without data loading; nothing is saved."""
    adapted, description = adapt(data, Source(model) if isinstance(model, str) else model, recipe, **aim_options)
    shape = (recipe.frames, 3, *description.preprocessing.size)
    with tempfile.TemporaryDirectory() as folder:
        clips = NoiseClips(steps * recipe.batch_size, shape, len(data.classes))
        recipe = replace(recipe, epochs=1, workers=0, mixup=0.0, balance="none")
        trainer = new_trainer(adapted, clips, recipe, Path(folder))
        trainer.args.save_strategy = "no"
        trainer.train()
    return trainer.speed.result(trainer.args)


def new_trainer(
    model: PeftModel,
    clips: Dataset,
    recipe: Recipe,
    folder: Path,
    validation: Validation | None = None,
    log: Sequence[str] = (),
    numbers: Normalization | None = None,
) -> ClipTrainer:
    """Set up a trainer by a recipe.

    Args:
        model: The adapted model.
        clips: The training clips.
        recipe: The recipe.
        folder: Folder for the checkpoints.
        validation: What to evaluate on after an epoch; None never evaluates.
        log: Programs to log to.
        numbers: How the numbers that videos are labeled with are normalized.

    Raises:
        ValueError: If the batch cannot be divided evenly among processes and accumulation steps.
    """
    config = model.active_peft_config
    measure = measure_of(config.problem_type) if validation else None
    arguments = training_arguments(recipe, token_width(model), folder, measure, log)
    loss = ClipLoss.of(recipe, getattr(clips, "videos", ()), config.num_labels, config.problem_type)
    check_causal(recipe.preceded, config.causal)
    trainer = ClipTrainer(model, arguments, clips, loss, recipe.mixup, recipe.preceded, validation, numbers)
    if recipe.patience and arguments.load_best_model_at_end:
        trainer.add_callback(EarlyStoppingCallback(recipe.patience))
    trainer.add_callback(MarkComplete(trainer.remarks))
    return trainer


def precision_note(recipe: Recipe) -> list[str]:
    """Return a note if the precision of a recipe is not available on this machine."""
    if recipe.precision == "fp16" and not torch.cuda.is_available():
        return ["precision='fp16' needs a CUDA GPU, and none was found: training in fp32."]
    return []
