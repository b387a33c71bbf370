"""What the benchmark of cost measures, and how large everything is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn

Facts = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        backbone: timm's name of the image model.
        options: Further arguments of ``timm.create_model``.
        classes: Number of classes.
        frames: Frames per clip.
        size: Height and width of a frame.
        batch: Clips per step.
        device: "cpu" or "cuda".
        dtype: Of weights and clips.
        rounds: How often each time is taken.
        compiler: Backend of ``torch.compile``.
        growth: By what is varied, the values.
    """

    backbone: str = "vit_base_patch16_clip_224"
    options: Facts = field(default_factory=dict)
    classes: int = 400
    frames: int = 8
    size: int = 224
    batch: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    rounds: int = 5
    compiler: str = "inductor"
    growth: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {
            "frames": (8, 16, 32, 64),
            "image size": (112, 160, 224, 320, 448),
            "depth": (3, 6, 12, 24),
            "adapters": (1, 2, 4, 8),
        }
    )

    def model(self, **changes: Any) -> nn.Module:
        """Build the image model, without a head, with random weights: cost depends on shapes alone."""
        torch.manual_seed(0)
        return timm.create_model(self.backbone, num_classes=0, **{**self.options, **changes})

    def clips(self, frames: int | None = None, size: int | None = None) -> Tensor:
        """Return random clips."""
        shape = (self.batch, frames or self.frames, 3, *[size or self.size] * 2)
        return torch.randn(shape, device=self.device, dtype=getattr(torch, self.dtype))

    def ready(self, model: nn.Module) -> nn.Module:
        """Put a model where it is measured, ready to train."""
        return model.to(self.device, getattr(torch, self.dtype)).train()


QUICK = Plan(
    backbone="vit_tiny_patch16_224",
    options={"img_size": 32, "embed_dim": 32, "num_heads": 2, "depth": 2},
    classes=5,
    frames=2,
    size=32,
    rounds=1,
    compiler="aot_eager",
    growth={"frames": (2, 4), "image size": (32, 64), "depth": (1, 2), "adapters": (1, 2)},
)
