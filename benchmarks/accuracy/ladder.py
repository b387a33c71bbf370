"""Rows of the accuracy benchmark: AIM built up adapter by adapter, other methods, and the paper's ablations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from benchmarks.accuracy.reversals import CLASSES, FRAMES
from benchmarks.accuracy.small_vit import DEPTH
from benchmarks.methods import rivals

HEAD_RATES = (1e-2, 3e-2, 1e-1)
SPATIAL_RATES = (8e-3, 1.6e-2, 3.2e-2)
ADAPTER_RATES = (4e-3, 8e-3, 1.6e-2)
CONVOLUTION_RATES = (8e-3, 1.6e-2, 3.2e-2)
LORA_RATES = (2e-3, 5e-3, 1.2e-2)
FULL_RATES = (3e-4, 6e-4, 1.2e-3)  # ten times higher for newly initialized parameters
FRACTIONS = (0.1, 0.5, 0.01)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: Label in the table.
        build: Turns the backbone into the model to train, clips -> scores.
        rates: Learning rates to choose from. If empty, the row takes the rate chosen for the same seed by the row of
            this name in the main table, or else by AIM.
        fraction: Fraction of the training clips to use.
        longer: Factor on the number of steps.
        paper: Top-1 in percent of the corresponding row in the paper.
        rounded: Whether to evaluate also with the trained weights rounded to half precision.
    """

    name: str
    build: Callable[[nn.Module], nn.Module]
    rates: tuple[float, ...] = ()
    fraction: float = 1.0
    longer: int = 1
    paper: float | None = None
    rounded: bool = False


def aim(name: str, rates: tuple[float, ...] = (), paper: float | None = None, **options: Any) -> Row:
    """Return a row of AIM with options of its config."""
    return Row(name, partial(rivals.aim, classes=len(CLASSES), frames=FRAMES, **options), rates, paper=paper)


def lora(backbone: nn.Module) -> nn.Module:
    """Return LoRA with about as many trainable parameters as AIM."""
    parameters = rivals.trained_parameters(AIM.build(copy.deepcopy(backbone)))
    return rivals.lora(backbone, len(CLASSES), parameters)


# The temporal embedding alone would give the spatial adapters the frame index.
SPACE_ALONE = {"temporal": False, "joint": False, "temporal_embedding": False}
AIM = replace(aim("+ joint (AIM)", ADAPTER_RATES, paper=62.0), rounded=True)
DIVIDED = Row(
    "full fine-tuning, divided space-time attention",
    partial(rivals.divided, classes=len(CLASSES), frames=FRAMES),
    FULL_RATES,
    paper=59.5,
)
BLIND = {
    "frozen": Row("frozen, linear head", partial(rivals.frozen, classes=len(CLASSES)), HEAD_RATES, paper=15.1),
    "spatial": aim("+ spatial", SPATIAL_RATES, paper=36.7, **SPACE_ALONE),
    "lora": Row("LoRA, frames averaged", lora, LORA_RATES),
    "full": Row(
        "full fine-tuning, frames averaged", partial(rivals.full, classes=len(CLASSES)), FULL_RATES, paper=36.2
    ),
}
TEMPORAL = aim("+ temporal", ADAPTER_RATES, paper=61.2, joint=False)
MAIN = (
    *(BLIND["frozen"], BLIND["spatial"], TEMPORAL, AIM),
    aim("AIM, two temporal adapters", ADAPTER_RATES, temporal_adapters=2),
    *(BLIND["lora"], BLIND["full"], DIVIDED),
)
DATA = tuple(replace(row, fraction=fraction, rounded=False) for fraction in FRACTIONS for row in (AIM, DIVIDED))
LONGER = tuple(replace(row, longer=4, rates=(), rounded=False) for row in (AIM, DIVIDED))
RATIO = tuple(
    aim(f"bottleneck ratio {ratio}", paper=paper, bottleneck_ratio=ratio)
    for ratio, paper in ((0.0625, 83.3), (0.125, 83.4), (0.5, 83.8))
)
POSITION = (
    aim("bottom half of the blocks", paper=80.7, layers_to_transform=list(range(DEPTH // 2))),
    aim("top half of the blocks", paper=83.3, layers_to_transform=list(range(DEPTH // 2, DEPTH))),
    aim("every second block", paper=83.2, layers_to_transform=list(range(1, DEPTH, 2))),
)
TABLES = {"main": MAIN, "data": DATA, "longer": LONGER, "ratio": RATIO, "position": POSITION}
OVER_TIME = (
    AIM,
    TEMPORAL,
    *(
        aim(name, CONVOLUTION_RATES if options.get("temporal") == "conv" else ADAPTER_RATES, **options)
        for name, options in rivals.OVER_TIME.items()
    ),
)
