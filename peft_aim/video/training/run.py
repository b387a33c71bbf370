"""Train an AIM adapter on videos with transformers' Trainer, on all devices that accelerate supports.

``accelerate launch -m peft_aim train VIDEOS --model NAME --output DIR`` runs ``peft-aim train`` on several devices.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from peft_aim.config import AIMConfig
from peft_aim.video.backbones import Source, load_backbone
from peft_aim.video.data import (
    Data,
    ForTraining,
    NoiseClips,
    Remarks,
    TrainingClips,
    class_weights,
    mirrored_labels,
    notes_on,
    typical_seconds,
    why_unreadable,
)
from peft_aim.video.description import Description
from peft_aim.video.evaluate import Evaluation, NothingToEvaluate
from peft_aim.video.output import printed_if_lost
from peft_aim.video.processes import on_cpu, processes, say
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.checkpoints import COMPLETE, MarkComplete, Run, SaveOnInterrupt, last_complete
from peft_aim.video.training.curve import curve
from peft_aim.video.training.logs import check_log, keep_logs
from peft_aim.video.training.report import Report
from peft_aim.video.training.saving import halve, save, save_results
from peft_aim.video.training.speed import Speed
from peft_aim.video.training.trainer import ClipLoss, ClipTrainer
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
    if recipe.flip:
        mirrored_labels(recipe.flip_pairs, data.classes)
    unreadable = why_unreadable(data.val, recipe.min_frames)
    if recipe.patience and (unreadable or not data.val):
        raise ValueError(
            f"patience={recipe.patience} needs val videos, but {unreadable or 'there is no val split.'} Give a val "
            "split, as a folder or with --val, or leave out patience."
        )
    run = Run.of(output, data, source, recipe.with_order(), check=check, options=aim_options)
    run.check(resume, overwrite)
    wrong = why_unreadable(data.train, recipe.min_frames)
    if wrong:
        raise ValueError(f"None of the {len(data.train)} training videos can be read. {wrong}")
    data, checked = data.without_broken(recipe) if check else (data, Remarks())
    recipe = recipe.for_videos(len(data.train))
    adapted, description = adapt(data, source, recipe, **aim_options)
    recipe = recipe.for_width(token_width(adapted))
    say(plan(data, recipe))
    notes = [*notes_on(data), *precision_note(recipe)]
    if unreadable:
        notes += [f"None of the {len(data.val)} val videos can be read: the last weights are kept. {unreadable}"]
    for note in notes:
        say(f"Note: {note}")
    clips = TrainingClips(data.train, recipe, ForTraining(description.preprocessing, recipe, data.classes))
    validation = Validation.of(data, description, recipe) if data.val and not unreadable else None
    with run.failing_well():
        trainer = new_trainer(adapted, clips, recipe, run.folder, validation, log)
        keep_logs(trainer, output)
        trainer.remarks.add(checked.to_dict())
        fit(trainer, run, resume)
        if recipe.save_dtype:
            halve(adapted, recipe.save_dtype)
        description = replace(description, seconds=typical_seconds(data.train, recipe.fps))
        save(trainer, description, output)
        evaluation, more_notes = results(trainer)
        remarks = trainer.remarks.gathered()
        report = Report(
            evaluation,
            trained_parameters=adapted.get_nb_trainable_parameters()[0],
            skipped=[*remarks.skipped],
            damaged=[*remarks.damaged],
            notes=[*notes, *more_notes, *remarks.notes()],
            speed=trainer.speed.result(trainer.args),
            classes=data.classes,
            recipe=recipe,
            curve=curve(trainer.state.log_history),
            kept=kept_epoch(trainer),
        )
        if processes().is_main_process:
            with printed_if_lost(report):
                if evaluation:
                    save_results(adapted, replace(description, results={"val": evaluation.summary()}), output)
                report.write(output)
            run.end()
    return adapted, report


def plan(data: Data, recipe: Recipe) -> str:
    """Return what is about to be trained on, and for how long, in words."""
    videos = f"{len(data.train)} videos of {len(data.classes)} classes, {len(data.val)} val videos"
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
        trainer.remarks.add(Remarks.from_dict(json.loads((checkpoint / COMPLETE).read_text())).to_dict())
        trainer.readable = 1  # the clips read before count, too
        stop_again(trainer, checkpoint)
    trainer.add_callback(interrupt)
    try:
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    finally:
        interrupt.give_back()
    if interrupt.happened:
        raise KeyboardInterrupt(f"a checkpoint is in {run.folder}; continue with --resume")


def results(trainer: ClipTrainer) -> tuple[Evaluation | None, list[str]]:
    """Evaluate the adapter that was saved.

    Returns:
        The evaluation, and notes. It is None if there are no val videos, or if none can be read any more, which a note
        explains.
    """
    if trainer.validation is None:
        return None, []
    try:
        return trainer.validate(), []
    except NothingToEvaluate as nothing:
        return None, [str(nothing)]


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
        clips = NoiseClips(steps * recipe.batch_size, shape)
        once = replace(recipe, epochs=1, workers=0, mixup=0.0, balance="none")
        trainer = new_trainer(adapted, clips, once, Path(folder))
        trainer.args.save_strategy = "no"
        trainer.train()
    return trainer.speed.result(trainer.args)


def adapt(data: Data, source: Source, recipe: Recipe, **aim_options: Any) -> tuple[PeftModel, Description]:
    """Load the backbone, add a new adapter, and return both with the adapter's description."""
    torch.manual_seed(recipe.seed)
    backbone, preprocessing = load_backbone(source)
    temporal = aim_options.get("temporal", recipe.temporal)
    temporal = "attention" if temporal is True else temporal
    recipe = replace(recipe, temporal=temporal or recipe.temporal).with_order()
    branch = ("temporal_layers", "temporal_adapters", "temporal_conv", "temporal_embedding")
    drops = temporal or aim_options.get("joint", True)
    options = {
        "num_frames": recipe.frames,
        "id2label": dict(enumerate(data.classes)),
        "scale": recipe.scale,
        "temporal": temporal,
        **({name: getattr(recipe, name) for name in branch} if temporal else {}),
        "drop_path": recipe.drop_path if drops else 0.0,
        "head_dropout": recipe.head_dropout,
        "recompute": recipe.recompute,
        "final_norm": True,
    }
    adapted = get_peft_model(backbone, AIMConfig(**{**options, **aim_options}))
    recipe = recipe.for_width(token_width(adapted))
    return adapted, Description.new(recipe, preprocessing, source.resolved(backbone), data.classes)


def token_width(adapted: PeftModel) -> int:
    """Return the token width of a backbone, that of its widest blocks if they differ."""
    found = adapted.get_base_model().aim_clips.inspection
    return max(block.width for block in (found.all_blocks or found.modules).values())


def new_trainer(
    model: PeftModel,
    clips: Dataset,
    recipe: Recipe,
    folder: Path,
    validation: Validation | None = None,
    log: Sequence[str] = (),
) -> ClipTrainer:
    """Translate a recipe to the arguments of transformers' Trainer.

    Args:
        model: The adapted model.
        clips: The training clips.
        recipe: The recipe.
        folder: Folder for the checkpoints.
        validation: What to evaluate on after an epoch; None never evaluates.
        log: Programs to log to.

    Raises:
        ValueError: If the batch cannot be divided evenly among processes and accumulation steps.
    """
    parts = processes().num_processes * recipe.accumulation
    if recipe.batch_size % parts:
        raise ValueError(
            f"batch_size={recipe.batch_size} cannot be divided among {processes().num_processes} processes with "
            f"{recipe.accumulation} accumulation steps each. Give a multiple of {parts}."
        )
    keeps_best = recipe.keep == "best" and validation is not None
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=on_cpu(),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size // parts,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.for_width(token_width(model)).peak_lr,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16" and torch.cuda.is_available(),
        torch_compile=recipe.compile,
        dataloader_num_workers=recipe.workers,
        dataloader_persistent_workers=recipe.workers > 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        save_strategy="epoch",  # MarkComplete deletes earlier checkpoints
        eval_strategy="epoch" if validation else "no",
        load_best_model_at_end=keeps_best,
        metric_for_best_model="eval_top1" if keeps_best else None,
        restore_callback_states_from_checkpoint=True,  # for the evaluations that count towards patience
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # StopIfNotFinite stops instead
        report_to=list(log),
        seed=recipe.seed,
    )
    weights = None
    if recipe.balance == "loss":
        weights = class_weights([label for _, label in clips.videos], model.active_peft_config.num_labels)
    loss = ClipLoss(recipe.label_smoothing, weights)
    trainer = ClipTrainer(model, arguments, clips, loss, recipe.mixup, validation)
    if recipe.patience and keeps_best:
        trainer.add_callback(EarlyStoppingCallback(recipe.patience))
    trainer.add_callback(MarkComplete(trainer.remarks))
    return trainer


def precision_note(recipe: Recipe) -> list[str]:
    """Return a note if the precision of a recipe is not available on this machine."""
    if recipe.precision == "fp16" and not torch.cuda.is_available():
        return ["precision='fp16' needs a CUDA GPU, and none was found: training in fp32."]
    return []
