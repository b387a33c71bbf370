"""The rows of the benchmark of accuracy: AIM built up adapter by adapter, rivals, and ablations as in the paper."""

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
LORA_RATES = (2e-3, 5e-3, 1.2e-2)
FULL_RATES = (3e-4, 6e-4, 1.2e-3)  # ten times as much for what starts afresh
FRACTIONS = (0.1, 0.5, 0.01)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: What stands in the table.
        build: Makes of the image model what is trained, clips -> scores.
        rates: Learning rates to choose from; none takes the choice, for the same seed, of the main table's row of
            this name, or else of AIM.
        fraction: Which part of the training clips it gets.
        longer: How many times as many steps it takes.
        paper: Top-1 in percent that the paper has for the like.
        rounded: Whether it is tested again after its trained weights have been rounded to half precision.
    """

    name: str
    build: Callable[[nn.Module], nn.Module]
    rates: tuple[float, ...] = ()
    fraction: float = 1.0
    longer: int = 1
    paper: float | None = None
    rounded: bool = False


def aim(name: str, rates: tuple[float, ...] = (), paper: float | None = None, **options: Any) -> Row:
    """Return a row with AIM's adapters, by options of its config."""
    return Row(name, partial(rivals.aim, classes=len(CLASSES), frames=FRAMES, **options), rates, paper=paper)


def lora(backbone: nn.Module) -> nn.Module:
    """LoRA with as many trained parameters as AIM."""
    parameters = rivals.trained_parameters(AIM.build(copy.deepcopy(backbone)))
    return rivals.lora(backbone, len(CLASSES), parameters)


# The embedding alone would tell the adapters in space which frame they see.
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
