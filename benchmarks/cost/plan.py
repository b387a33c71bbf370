"""The measurements of the cost benchmark, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn

Facts = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        backbone: timm's name of the backbone. The default is the paper's, CLIP ViT-B/16 with QuickGELU.
        with_gelu: timm's name of the same backbone with GELU, of which only counts are taken; None for none.
        options: Other arguments of ``timm.create_model``.
        classes: Number of classes.
        frames: Frames per clip.
        size: Height and width of a frame.
        batch: Clips per step.
        device: "cpu" or "cuda".
        dtype: Data type of weights and clips.
        rounds: Number of times that each time is taken.
        compiler: Backend of ``torch.compile``.
        growth: The values of each quantity that is varied.
        attach: timm's names of the backbones that an adapter is attached to, by their names in the table; one is
            vit-pytorch's, whose blocks are pairs of modules.
    """

    backbone: str = "vit_base_patch16_clip_quickgelu_224"
    with_gelu: str | None = "vit_base_patch16_clip_224"
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
    attach: dict[str, str] = field(
        default_factory=lambda: {
            "ViT-B/16": "vit_base_patch16_clip_quickgelu_224",
            "ViT-L/14": "vit_large_patch14_clip_quickgelu_224",
            "Swin-B": "swin_base_patch4_window7_224",
            "ViT-SO400M/14, 384 px": "vit_so400m_patch14_siglip_384",
            "ViT-g/14": "vit_giant_patch14_clip_224",
            "SAM ViT-B, 1024 px": "samvit_base_patch16",
            "ViT-B/16 of pairs": "vit_pytorch.ViT",
        }
    )

    def model(self, **changes: Any) -> nn.Module:
        """Build the backbone without a head, with random weights: cost depends on shapes only."""
        torch.manual_seed(0)
        return timm.create_model(self.backbone, num_classes=0, **{**self.options, **changes})

    def clips(self, frames: int | None = None, size: int | None = None) -> Tensor:
        """Return random clips."""
        shape = (self.batch, frames or self.frames, 3, *[size or self.size] * 2)
        return torch.randn(shape, device=self.device, dtype=getattr(torch, self.dtype))

    def ready(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and dtype of the measurement, ready to train."""
        return model.to(self.device, getattr(torch, self.dtype)).train()


QUICK = Plan(
    backbone="vit_tiny_patch16_224",
    with_gelu=None,
    options={"img_size": 32, "embed_dim": 32, "num_heads": 2, "depth": 2},
    classes=5,
    frames=2,
    size=32,
    rounds=1,
    compiler="eager",
    growth={"frames": (2, 4), "image size": (32, 64), "depth": (1, 2), "adapters": (1, 2)},
    attach={"a small ViT": "test_vit"},
)
