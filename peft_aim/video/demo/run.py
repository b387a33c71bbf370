"""The main job from end to end: an image model, two tasks that need time, an adapter for each, and swapping them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor

from peft_aim.video.backbones import load_backbone
from peft_aim.video.data import Data, EvaluationClips, Preprocessing, to_image
from peft_aim.video.demo.digits import SIZE, TASKS, stills, write_videos
from peft_aim.video.picture import draw_strip, row_of
from peft_aim.video.recipe import Recipe
from peft_aim.video.training import Report, train

VIDEOS_PER_CLASS = {"train": 120, "val": 50}
PRETRAINING_STEPS = 400
RECIPE = Recipe(
    epochs=10, warmup_epochs=1.0, batch_size=16, lr=5e-3, drop_path=0.0, head_dropout=0.0, crop_scale=(1.0, 1.0)
)
FROZEN = {"spatial": False, "temporal": False, "joint": False, "temporal_embedding": False}


def demo(folder: Path) -> list[dict[str, Any]]:
    """Run the demo and print what came out.

    Args:
        folder: Gets the backbone, the videos, the adapters and ``predictions.png``.

    Returns:
        The rows of the table that it prints.

    Raises:
        RuntimeError: If the adapters give other scores in another process.
    """
    began = time.perf_counter()
    torch.manual_seed(0)
    say("1/4  Pretrain a small ViT on still pictures of digits, then freeze it")
    pretrain(folder / "backbone")
    say("2/4  Write videos of two tasks; no single frame tells the class")
    for task in TASKS:
        for split, per_class in VIDEOS_PER_CLASS.items():
            write_videos(folder / task, task, split, per_class)
    adapted, reports = {}, {}
    for task in TASKS:
        for row, options in (("frozen", FROZEN), ("aim", {})):
            say(f"3/4  Task {task!r}: {'AIM' if row == 'aim' else 'a linear head on the frozen backbone'}")
            data, output = Data.find(folder / task), folder / f"{task}-{row}"
            adapted[task], reports[task, row] = train(
                data, str(folder / "backbone"), output, RECIPE, overwrite=True, **options
            )
    say("4/4  Load both adapters into a fresh backbone, in another process, and swap them on one batch")
    compare_elsewhere(adapted, folder)
    rows = results(reports, folder)
    print(f"\n{as_text(rows)}\n\nClips with predictions: {folder / 'predictions.png'}")
    print(f"{time.perf_counter() - began:.0f} seconds in all")
    return rows


def pretrain(folder: Path) -> None:
    """Train a small ViT to tell digit, place, size and angle in still pictures, and save it to a folder."""
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
    pictures, answers = stills(20_000)
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
    Trainer(model, arguments, data_collator=as_inputs, train_dataset=TensorDataset(pictures, answers)).train()
    model.save_pretrained(folder)
    half = [0.5] * 3
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=half, image_std=half).save_pretrained(folder)


def as_inputs(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Collate grey pictures and answers as a ViT takes them."""
    pictures, answers = default_collate(pairs)
    return {"pixel_values": 2 * pictures[:, None].expand(-1, 3, -1, -1) - 1, "labels": answers}


def compare_elsewhere(adapted: dict[str, PeftModel], folder: Path) -> None:
    """Score one batch of both tasks' clips here and, with the saved adapters, in another process; draw some."""
    preprocessing = load_backbone(str(folder / "backbone"))[1]
    examples = {task: validation_clips(folder / task, preprocessing) for task in adapted}
    batch = torch.stack([clip for clips in examples.values() for clip, _ in clips])
    scores = {}
    for task, model in adapted.items():
        with torch.no_grad():
            scores[str(folder / f"{task}-aim")] = model.eval()(batch).logits
    save_file({"clips": batch.contiguous(), **scores}, folder / "expected.safetensors")
    script = ["-W", "ignore::FutureWarning", "-m", "peft_aim.video.demo.swap"]
    command = [sys.executable, *script, str(folder / "expected.safetensors"), *scores]
    if subprocess.run(command).returncode:
        raise RuntimeError("The adapters gave other scores in another process than here.")
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
    first = [next(video for video in data.val if video[1] == label) for label in range(len(data.classes))]
    clips = EvaluationClips(first, RECIPE.frames, RECIPE.stride, (1, 1), preprocessing, RECIPE.min_frames)
    return [(item["clips"][0], item["labels"]) for item in map(clips.__getitem__, range(len(clips)))]


def results(reports: dict[tuple[str, str], Report], folder: Path) -> list[dict[str, Any]]:
    """Return what came out, a row for each task and model."""
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
    """Lay out rows for a terminal."""
    lines = [f"{'task':8} {'':28} {'top-1':>7} {'trained':>9} {'file':>9}"]
    for row in rows:
        lines.append(f"{row['task']:8} {row['model']:28} {row['top-1']:7.1%}")
        if "file bytes" in row:
            lines[-1] += f" {row['trained parameters']:9,} {row['file bytes'] / 1000:6.0f} kB"
    return "\n".join(lines)


def say(headline: str) -> None:
    """Print what comes next."""
    print(f"\n{headline}", flush=True)
