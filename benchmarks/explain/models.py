"""The models that are explained: AIM on a small ViT, which is pretrained on still images of digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from benchmarks.explain.videos import CLASSES, FRAMES, SIZE, draw, stills
from benchmarks.methods import rivals
from benchmarks.real.rows import ORDERED
from benchmarks.training.loop import minimize

PATCH, LABELS = 8, 90


@dataclass(frozen=True)
class Plan:
    """Sizes of the benchmark.

    Attributes:
        stills: Images to pretrain the backbone on.
        pretraining: Pretraining steps.
        train: Videos to train an adapter on.
        steps: Training steps.
        test: Videos to explain.
    """

    stills: int = 10_000
    pretraining: int = 1_000
    train: int = 1_500
    steps: int = 400
    test: int = 80


def trained(plan: Plan, folder: Path) -> dict[str, nn.Module]:
    """Return a model for each task, trained now or, if the folder has its weights, before."""
    torch.manual_seed(0)
    backbone = pretrained(plan) if any(not weights(folder, task).exists() for task in CLASSES) else vit(0)
    models = {}
    for task, classes in CLASSES.items():
        own = vit(0)
        own.load_state_dict(backbone.state_dict())
        model = rivals.aim(own, classes, FRAMES, final_norm=True, **ORDERED)
        if weights(folder, task).exists():
            model.load_state_dict(torch.load(weights(folder, task)))
        else:
            fit(model, task, plan)
            torch.save(model.state_dict(), weights(folder, task))
        models[task] = model.eval().requires_grad_(False)
    return models


def weights(folder: Path, task: str) -> Path:
    """Return the file of a trained model."""
    return folder / f"explain-{task}.pt"


def vit(classes: int) -> VisionTransformer:
    """Return a small ViT with random weights; 0 classes give it no head."""
    sizes = {"embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2}
    return VisionTransformer(SIZE, PATCH, in_chans=1, num_classes=classes, **sizes)


def pretrained(plan: Plan) -> nn.Module:
    """Pretrain a backbone to tell which digit is where in single images."""
    model = vit(LABELS)
    images, targets = stills(plan.stills)
    loss = lambda indices: 10 * F.binary_cross_entropy_with_logits(model(images[indices]), targets[indices])
    minimize(model, loss, len(images), plan.pretraining, batch=64, lr=2e-3)
    model.reset_classifier(0)
    return model


def fit(model: nn.Module, task: str, plan: Plan) -> None:
    """Train an adapter on a task."""
    drawn = draw(task, plan.train, held_out=False, seed=1)
    loss = lambda indices: F.cross_entropy(model(drawn.clips[indices]), drawn.labels[indices])
    minimize(model, loss, len(drawn.labels), plan.steps, batch=16, lr=3e-3)
