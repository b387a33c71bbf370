"""Trains an AIM adapter on a folder of videos with transformers' Trainer."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainingArguments

from peft_aim.config import AIMConfig
from peft_aim.video import sampling
from peft_aim.video.backbones import load_backbone
from peft_aim.video.folder import Scan, VideoFolder, class_names, scan
from peft_aim.video.transforms import Preprocessing, for_evaluation, for_training


@dataclass
class Recipe:
    """How an adapter is trained.

    Attributes:
        frames: Frames T per clip.
        stride: Distance of the frames in the video; None takes one of each of T equal segments.
        epochs: Passes over the training videos.
        batch_size: Clips per step.
        lr: Peak learning rate; it warms up over a tenth of the steps and falls to 0 along a cosine.
        weight_decay: Weight decay, on neither biases nor norms nor the temporal embedding.
        drop_path: Final rate of stochastic depth on the temporal and joint branches.
        crop_scale: Least and greatest part of a frame's area that training crops keep.
        flip: Mirror half of the training clips. Not for classes that tell left from right.
        workers: Processes that read videos beside the training process.
        seed: Of all random numbers.

    Raises:
        ValueError: If a value is out of range.
    """

    frames: int = 8
    stride: int | None = None
    epochs: int = 30
    batch_size: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.05
    drop_path: float = 0.2
    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = False
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        least, greatest = self.crop_scale
        wanted = {
            "frames": (self.frames >= 1, "1 or more"),
            "stride": (self.stride is None or self.stride >= 1, "1 or more; leave it out for one frame per segment"),
            "epochs": (self.epochs >= 1, "1 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "lr": (0 < self.lr < math.inf, "a positive number"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or a positive number"),
            "drop_path": (0 <= self.drop_path < 1, "in [0, 1)"),
            "crop_scale": (0 < least <= greatest <= 1, "two numbers in (0, 1], the smaller one first"),
            "workers": (self.workers >= 0, "0 or more"),
        }
        for name, (good, wish) in wanted.items():
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r} is out of range: give {wish}.")

    def sample(self, count: int, random: bool) -> list[int]:
        """Choose the frames of a clip from a video of ``count`` frames."""
        if self.stride is None:
            return sampling.one_per_segment(count, self.frames, random)
        return sampling.strided(count, self.frames, self.stride, random)


@dataclass
class Report:
    """What came out of a training.

    Attributes:
        accuracy: Part of the validation videos that are classified right; None if there are none.
        videos: Number of validation videos behind it.
        trained_parameters: Number of parameters trained.
        skipped: Files that could not be read, with the reason.
        notes: What else is worth knowing of the videos.
        classes: Names of the classes.
        recipe: How it was trained.
    """

    accuracy: float | None
    videos: int
    trained_parameters: int
    skipped: dict[str, str]
    notes: list[str]
    classes: list[str]
    recipe: Recipe = field(repr=False)


def train(
    root: str | Path,
    model: str,
    output: str | Path,
    recipe: Recipe,
    weights: str | None = None,
    random_weights: bool = False,
    overwrite: bool = False,
    **aim_options: Any,
) -> tuple[PeftModel, Report]:
    """Train an adapter on ``root/{train,val}/<class>/*`` and save it, with a report, to a folder.

    Args:
        root: The folder of videos; without a split ``val`` nothing is evaluated.
        model: Name of the image model, see :func:`peft_aim.video.backbones.load_backbone`.
        output: New or empty folder for the adapter and ``report.json``.
        recipe: How to train.
        weights: A file of weights for the image model.
        random_weights: Train on a backbone of noise, knowingly.
        overwrite: Write to ``output`` although there is something in it.
        aim_options: Options of :class:`peft_aim.AIMConfig`.

    Returns:
        The adapted model, and what came out.

    Raises:
        ValueError: If there are no videos, no such model, or something in the output folder.
    """
    torch.manual_seed(recipe.seed)
    root, output = Path(root), Path(output)
    check_output(output, overwrite)
    classes = class_names(root)
    splits = {split: scan(root, split, classes) for split in ("train", "val") if (root / split).is_dir()}
    backbone, preprocessing = load_backbone(model, weights, random_weights)
    drops = aim_options.get("temporal", True) or aim_options.get("joint", True)
    config = AIMConfig(
        num_frames=recipe.frames,
        id2label=dict(enumerate(classes)),
        drop_path=recipe.drop_path if drops else 0.0,
        **aim_options,
    )
    adapted = get_peft_model(backbone, config)
    datasets = {
        split: dataset(found.videos, recipe, preprocessing, split == "train") for split, found in splits.items()
    }
    accuracy, videos = fit(adapted, datasets, recipe, output)
    report = Report(
        accuracy=accuracy,
        videos=videos,
        trained_parameters=adapted.get_nb_trainable_parameters()[0],
        skipped={str(path): reason for found in splits.values() for path, reason in found.broken.items()},
        notes=notes_on(splits, classes),
        classes=classes,
        recipe=recipe,
    )
    (output / "report.json").write_text(json.dumps({"model": model, **asdict(report)}, indent=2))
    return adapted, report


def check_output(output: Path, overwrite: bool) -> None:
    """Check that nothing is lost by writing to a folder.

    Raises:
        ValueError: If it is a file, or has something in it that is not to be overwritten.
    """
    if output.is_file():
        raise ValueError(f"The output {output} is a file. Give a folder.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ValueError(f"The output {output} is not empty. Give another folder, or allow it with --overwrite.")


def notes_on(splits: dict[str, Scan], classes: list[str]) -> list[str]:
    """Return what a user should know of the videos before trusting the accuracy."""
    notes = [] if "val" in splits else ["There is no split val, so nothing was evaluated."]
    for split, found in splits.items():
        labels = {label for _, label, _ in found.videos}
        absent = [name for label, name in enumerate(classes) if label not in labels]
        if absent:
            notes.append(f"No video of {split} that could be read is of the classes {absent}.")
    return notes


def dataset(videos: list, recipe: Recipe, preprocessing: Preprocessing, training: bool) -> VideoFolder:
    """Return the clips of scanned videos, prepared for training or for evaluation."""
    transform = (
        for_training(preprocessing, recipe.crop_scale, recipe.flip) if training else for_evaluation(preprocessing)
    )
    return VideoFolder(videos, partial(recipe.sample, random=training), transform)


def fit(model: PeftModel, datasets: dict[str, VideoFolder], recipe: Recipe, output: Path) -> tuple[float | None, int]:
    """Train an adapter and save it; return its accuracy on the split ``val`` and the number of videos behind it."""
    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        learning_rate=recipe.lr,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        dataloader_num_workers=recipe.workers,
        dataloader_persistent_workers=recipe.workers > 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        seed=recipe.seed,
    )
    trainer = ClipTrainer(
        model,
        arguments,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("val"),
        compute_metrics=top1,
    )
    trainer.train()
    model.save_pretrained(str(output))
    if "val" not in datasets:
        return None, 0
    metrics = trainer.evaluate()
    return metrics["eval_accuracy"], metrics["eval_videos"]


def top1(prediction: EvalPrediction) -> dict[str, float]:
    """Return the part of the videos that are classified right, and the number of videos that could be read."""
    readable = prediction.label_ids >= 0
    right = (prediction.predictions.argmax(-1) == prediction.label_ids)[readable]
    return {"accuracy": float(right.mean()) if len(right) else float("nan"), "videos": len(right)}


class ClipTrainer(Trainer):
    """transformers' Trainer for any model that takes clips and returns scores, as a tensor or in a ModelOutput."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Compute the cross-entropy of the scores; clips that could not be read, labelled -100, don't count."""
        output = model(inputs["clips"])
        scores = output if isinstance(output, Tensor) else output["logits"]
        readable = (inputs["labels"] >= 0).sum().clamp(min=1)
        loss = F.cross_entropy(scores.float(), inputs["labels"], ignore_index=-100, reduction="sum") / readable
        return (loss, {"logits": scores}) if return_outputs else loss

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Leave the temporal embedding, like biases and norms, without weight decay."""
        return [name for name in super().get_decay_parameter_names(model) if "temporal_embedding" not in name]
