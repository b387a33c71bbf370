"""Prepares the frames of a clip as the backbone expects its images, every frame of a clip in the same way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode


@dataclass(frozen=True)
class Preprocessing:
    """How a backbone wants its images.

    Attributes:
        size: Height and width, in pixels.
        mean: Mean of each channel, of values in [0, 1].
        std: Standard deviation of each channel.
        interpolation: "nearest", "bilinear" or "bicubic".
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"


def for_training(preprocessing: Preprocessing, crop_scale: tuple[float, float], flip: bool) -> nn.Module:
    """Return random crops, and flips if wanted, the same for all frames of a clip.

    Args:
        preprocessing: How the backbone wants its images.
        crop_scale: Least and greatest part of a frame's area that a crop keeps.
        flip: Mirror half of the clips. Not for classes that tell left from right.

    Shape:
        uint8 ``(T, 3, H', W')`` -> float ``(T, 3, H, W)``
    """
    interpolation = InterpolationMode(preprocessing.interpolation)
    crop = v2.RandomResizedCrop(preprocessing.size, scale=crop_scale, interpolation=interpolation, antialias=True)
    mirror = [v2.RandomHorizontalFlip()] if flip else []
    return v2.Compose([crop, *mirror, *_normalized(preprocessing)])


def for_evaluation(preprocessing: Preprocessing) -> nn.Module:
    """Return the central crop of frames resized to their short side.

    Args:
        preprocessing: How the backbone wants its images.

    Shape:
        uint8 ``(T, 3, H', W')`` -> float ``(T, 3, H, W)``
    """
    interpolation = InterpolationMode(preprocessing.interpolation)
    resize = v2.Resize(min(preprocessing.size), interpolation=interpolation, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(preprocessing.size), *_normalized(preprocessing)])


def to_image(clip: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Undo the normalization, to show frames, ``(T, 3, H, W) -> (T, H, W, 3)`` in [0, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (clip * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def _normalized(preprocessing: Preprocessing) -> list[nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(preprocessing.mean, preprocessing.std)]
