"""Rows of the benchmark on real videos: how the frozen ViT-Tiny is adapted, and the learning rates to choose from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.methods import rivals
from benchmarks.methods.attentive import AttentivePooling
from benchmarks.methods.st_adapter import st_adapter
from peft_aim.video.backbones import Source, load_backbone
from peft_aim.video.data import Preprocessing

FRAMES = 8
MODEL, WEIGHTS = "vit_tiny_patch16_224", "weights/vit_tiny_patch16_224.safetensors"
Build = Callable[[nn.Module, int], nn.Module]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: Label in the table.
        build: Turns the backbone into the model to train, for a number of classes.
        rates: Learning rates to choose from. If empty, the row takes the rate of AIM.
    """

    name: str
    build: Build
    rates: tuple[float, ...] = ()


def backbone(data: Path, size: int) -> tuple[nn.Module, Preprocessing]:
    """Load the pretrained ViT-Tiny without a head, and its preprocessing."""
    return load_backbone(Source(MODEL, weights=str(data / WEIGHTS), image_size=size))


def rate(row: Row, rates: dict[str, float]) -> float:
    """Return the learning rate of a row from those chosen by row: without a choice of its own, AIM's."""
    return rates[row.name] if row.name in rates else rates[AIM.name]


def aim(**options: Any) -> Build:
    """Return AIM with options of its config; as in the paper, the final norm is trained."""
    options = {"final_norm": True, **ORDERED, **options}
    return lambda model, classes: rivals.aim(model, classes, FRAMES, **options)


def lora(model: nn.Module, classes: int) -> nn.Module:
    """Return LoRA with about as many trainable parameters as AIM."""
    parameters = rivals.trained_parameters(AIM.build(copy.deepcopy(model), classes))
    return rivals.lora(model, classes, parameters)


# As `peft-aim train` does by default; the config's own defaults are the paper's.
ORDERED = {"temporal_conv": True, "temporal_embedding": "blocks"}
PAPER = {"temporal_conv": False, "temporal_embedding": "input"}
# The temporal embedding alone would give the spatial adapters the frame index.
SPACE_ALONE = {"temporal": False, "joint": False, "temporal_conv": False, "temporal_embedding": False}

RATES = (1.5e-3, 3e-3, 6e-3)
AIM = Row("AIM (+ joint)", aim(), RATES)
PAPERS_AIM = Row("AIM with the temporal adapter of the paper", aim(**PAPER), RATES)
DIVIDED = Row(
    "full fine-tuning, divided space-time attention",
    lambda model, classes: rivals.divided(model, classes, FRAMES),
    (5e-5, 1e-4, 2e-4, 4e-4),
)
ATTENTIVE = Row("frozen, attentive pooling", AttentivePooling, (1e-3, 3e-3, 1e-2))
LINEAR = Row("frozen, linear head", rivals.frozen, (3e-3, 1e-2, 3e-2))
LORA = Row("LoRA, frames averaged", lora, (1e-3, 3e-3, 6e-3))
FULL = Row("full fine-tuning, frames averaged", rivals.full, (5e-5, 1e-4, 2e-4, 4e-4))
SPATIAL = Row("+ spatial", aim(**SPACE_ALONE))
ST = Row(
    "ST-Adapter",
    lambda model, classes: st_adapter(model, classes, FRAMES, model.num_features // 2),
    (3e-3, 6e-3, 1.2e-2),
)
TEMPORAL = Row("+ temporal", aim(joint=False))
CONVOLUTION, CONVOLUTION_ALL, BOTH = (
    Row(name, aim(**{**PAPER, **options}), ST.rates if options is rivals.CONVOLUTION_ALONE else RATES)
    for name, options in rivals.OVER_TIME.items()
    if name != rivals.AS_TRAINED  # that is AIM here
)
BLIND = (LINEAR, ATTENTIVE, LORA, FULL, SPATIAL)  # to the order of frames
ROWS = (
    LINEAR,
    ATTENTIVE,
    LORA,
    FULL,
    DIVIDED,
    ST,
    SPATIAL,
    TEMPORAL,
    AIM,
    PAPERS_AIM,
    CONVOLUTION,
    CONVOLUTION_ALL,
    BOTH,
)
OVER_TIME = (AIM, BOTH, CONVOLUTION, CONVOLUTION_ALL)
SMALL = (LINEAR, AIM)  # those on the surveillance clips


# What makes the order of frames visible, and the paper's regularization, one by one, on training people only.
CHOICES = (
    PAPERS_AIM,
    Row("convolution in the temporal adapter", aim(temporal_embedding="input")),
    Row("embedding in the temporal adapter of every block", aim(temporal_conv=False)),
    AIM,
    Row("AIM, drop path 0.2", aim(drop_path=0.2)),
    Row("AIM, head dropout 0.5", aim(head_dropout=0.5)),
)
