"""A recipe in the words of transformers' Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import TrainingArguments

from peft_aim.video.metrics import Measure
from peft_aim.video.processes import on_cpu, processes
from peft_aim.video.recipe import Recipe


def training_arguments(
    recipe: Recipe, width: int, folder: Path, measure: Measure | None, log: Sequence[str]
) -> TrainingArguments:
    """Translate a recipe to the arguments of transformers' Trainer.

    Args:
        recipe: The recipe.
        width: Token width of the backbone.
        folder: Folder for the checkpoints.
        measure: The metric of the val videos, which are evaluated after an epoch; None if there are none.
        log: Programs to log to.

    Raises:
        ValueError: If the batch cannot be divided evenly among processes and accumulation steps.
    """
    keeps_best = recipe.keep == "best" and measure is not None
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=on_cpu(),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=part_of_batch(recipe),
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.for_width(width).peak_lr,
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
        eval_strategy="epoch" if measure else "no",
        load_best_model_at_end=keeps_best,
        metric_for_best_model=f"eval_{measure.key}" if keeps_best else None,
        greater_is_better=measure.is_fraction if keeps_best else None,
        restore_callback_states_from_checkpoint=True,  # for the evaluations that count towards patience
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # StopIfNotFinite stops instead
        report_to=list(log),
        seed=recipe.seed,
    )


def part_of_batch(recipe: Recipe) -> int:
    """Return how many clips of a batch are one part: that of a process and an accumulation step.

    Raises:
        ValueError: If the batch cannot be divided evenly.
    """
    parts = processes().num_processes * recipe.accumulation
    if recipe.batch_size % parts:
        raise ValueError(
            f"batch_size={recipe.batch_size} cannot be divided among {processes().num_processes} processes with "
            f"{recipe.accumulation} accumulation steps each. Give a multiple of {parts}."
        )
    return recipe.batch_size // parts
