"""The whole workflow: pretrain a backbone, train an adapter for each of two temporal tasks, and swap the adapters."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor

from peft_aim.video.backbones import load_backbone
from peft_aim.video.data import Data, EvaluationClips, Preprocessing, Views, to_image
from peft_aim.video.demo.digits import SIZE, TASKS, stills, write_videos
from peft_aim.video.output import check_writable
from peft_aim.video.picture import draw_strip, row_of
from peft_aim.video.recipe import Recipe
from peft_aim.video.training import Report, train

VIDEOS_PER_CLASS = {"train": 240, "val": 50}
PRETRAINING_STEPS = 400
EPOCHS = {"motion": 3, "change": 4}  # sizes and angles are harder to tell apart than positions
RECIPE = Recipe(batch_size=16, lr=3e-3, crop_scale=(1.0, 1.0), keep="last")
FROZEN = {"spatial": False, "temporal": False, "joint": False, "temporal_embedding": False}


def demo(folder: Path) -> list[dict[str, Any]]:
    """Run the demo and print the results.

    Args:
        folder: Output folder for the backbone, the videos, the adapters and ``predictions.png``.

    Returns:
        The rows of the printed table.

    Raises:
        ValueError: If the folder cannot be written to.
        RuntimeError: If the saved adapters cannot be loaded in another process, or give different scores there.
    """
    check_writable(folder)
    began = time.perf_counter()
    torch.manual_seed(0)
    say("1/4  Pretrain a small ViT on still images of digits, then freeze it")
    pretrain(folder / "backbone")
    say("2/4  Write the videos of two tasks; no single frame shows the class")
    for task in TASKS:
        for split, per_class in VIDEOS_PER_CLASS.items():
            write_videos(folder / task, task, split, per_class)
    adapted, reports = {}, {}
    for task in TASKS:
        # no frozen backbone can do better than chance, however long its head is trained: single frames have no class
        for row, epochs, options in (("frozen", 1, FROZEN), ("aim", EPOCHS[task], {})):
            say(f"3/4  Task {task!r}: {'AIM' if row == 'aim' else 'linear head on the frozen backbone'}")
            data, output = Data.find(folder / task), folder / f"{task}-{row}"
            recipe, backbone = replace(RECIPE, epochs=epochs), str(folder / "backbone")
            adapted[task], reports[task, row] = train(data, backbone, output, recipe, overwrite=True, **options)
    say("4/4  Load both adapters onto a fresh backbone in another process, and swap them on one batch")
    compare_elsewhere(adapted, folder)
    rows = results(reports, folder)
    print(f"\n{as_text(rows)}\n\nPredictions drawn to {folder / 'predictions.png'}")
    print(f"Total time: {time.perf_counter() - began:.0f} s")
    return rows


def pretrain(folder: Path) -> None:
    """Train a small ViT to classify digit, position, size and angle in still images, and save it to a folder."""
    config = ViTConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=SIZE,
        patch_size=8,
        num_labels=24,
        problem_type="multi_label_classification",
    )
    model = ViTForImageClassification(config)
    images, targets = stills(20_000)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=PRETRAINING_STEPS,
        per_device_train_batch_size=256,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.05,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    Trainer(model, arguments, data_collator=as_inputs, train_dataset=TensorDataset(images, targets)).train()
    model.save_pretrained(folder)
    half = [0.5] * 3
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=half, image_std=half).save_pretrained(folder)


def as_inputs(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Collate grayscale images and targets to the inputs of a ViT."""
    images, targets = default_collate(pairs)
    return {"pixel_values": 2 * images[:, None].expand(-1, 3, -1, -1) - 1, "labels": targets}


def compare_elsewhere(adapted: dict[str, PeftModel], folder: Path) -> None:
    """Compare the scores of one batch here with those of the saved adapters in another process, and draw predictions.

    Args:
        adapted: Adapted models by task. The batch has a validation clip of each class of all tasks.
        folder: Output folder of the demo.

    Raises:
        RuntimeError: If the other process fails, or the scores differ.
    """
    preprocessing = load_backbone(str(folder / "backbone"))[1]
    examples = {task: validation_clips(folder / task, preprocessing) for task in adapted}
    batch = torch.stack([clip for clips in examples.values() for clip, _ in clips])
    scores = {}
    for task, model in adapted.items():
        with torch.no_grad():
            scores[str(folder / f"{task}-aim")] = model.eval()(batch).logits
    save_file({"clips": batch.contiguous(), **scores}, folder / "expected.safetensors")
    script = Path(__file__).with_name("swap.py")  # "-m" would find a folder peft_aim, such as a clone, here first
    command = [sys.executable, "-W", "ignore::FutureWarning", script, folder / "expected.safetensors", *scores]
    if subprocess.run(command).returncode:
        raise RuntimeError(
            "The saved adapters cannot be compared in another process, or give other scores there; see above."
        )
    rows, position = [], 0
    for (task, clips), of_task in zip(examples.items(), scores.values(), strict=True):
        for clip, label in clips:
            probabilities = of_task[position].softmax(-1)
            rows.append(row_of(to_image(clip, preprocessing), probabilities, sorted(TASKS[task]), label))
            position += 1
    draw_strip(folder / "predictions.png", rows)


def validation_clips(root: Path, preprocessing: Preprocessing) -> list[tuple[Tensor, int]]:
    """Return the first validation clip of each class, with its label."""
    data = Data.find(root)
    first = [next(video for video in data.val if video.label == label) for label in range(len(data.classes))]
    views = Views(RECIPE.frames, RECIPE.stride, clips=1, crops=1, preprocessing=preprocessing)
    clips = EvaluationClips(first, views, RECIPE.min_frames, RECIPE.fps)
    return [(item["clips"][0], item["labels"]) for item in map(clips.__getitem__, range(len(clips)))]


def results(reports: dict[tuple[str, str], Report], folder: Path) -> list[dict[str, Any]]:
    """Return the results, one row for each task and model."""
    rows = []
    for task in TASKS:
        rows.append({"task": task, "model": "chance", "top-1": 1 / len(TASKS[task])})
        for row, name in (("frozen", "frozen backbone, linear head"), ("aim", "AIM")):
            report, adapter = reports[task, row], folder / f"{task}-{row}" / "adapter_model.safetensors"
            sizes = {"trained parameters": report.trained_parameters, "file bytes": adapter.stat().st_size}
            best = report.evaluation.best
            rows.append({"task": task, "model": name, "top-1": best.top1, "videos": best.videos, **sizes})
    return rows


def as_text(rows: list[dict[str, Any]]) -> str:
    """Format rows as a table for the terminal."""
    lines = [f"{'task':8} {'':28} {'top-1':>7} {'trainable':>9} {'file':>9}"]
    for row in rows:
        lines.append(f"{row['task']:8} {row['model']:28} {row['top-1']:7.1%}")
        if "file bytes" in row:
            lines[-1] += f" {row['trained parameters']:9,} {row['file bytes'] / 1000:6.0f} kB"
    return "\n".join(lines)


def say(headline: str) -> None:
    """Print the headline of the next step."""
    print(f"\n{headline}", flush=True)
