"""Prepares the frames of a clip as the backbone expects its images, every frame of a clip in the same way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from peft_aim.video.recipe import Recipe


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

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):  # lists, if they come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))


class ForTraining(nn.Module):
    """Random crops, flips and all else that a recipe asks for: one draw for all frames of a clip.

    Args:
        preprocessing: How the backbone wants its images.
        recipe: What is to be done to clips.
        classes: Names of the classes.

    Shape:
        uint8 ``(T, 3, H', W')`` and a label -> float ``(T, 3, H, W)`` and a label, another one if the clip is mirrored
        and its class means left or right.
    """

    def __init__(self, preprocessing: Preprocessing, recipe: Recipe, classes: list[str]) -> None:
        super().__init__()
        interpolation = InterpolationMode(preprocessing.interpolation)
        steps: list[nn.Module] = [
            v2.RandomResizedCrop(preprocessing.size, recipe.crop_scale, interpolation=interpolation, antialias=True)
        ]
        if recipe.color_jitter:
            steps.append(v2.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1))
        if recipe.rand_augment:
            steps.append(v2.RandAugment(*recipe.rand_augment, interpolation=interpolation))
        steps += _normalized(preprocessing)
        if recipe.random_erasing:
            steps.append(v2.RandomErasing(recipe.random_erasing, value="random"))
        self.steps = v2.Compose(steps)
        self.flip = recipe.flip
        self.mirrored = mirrored_labels(recipe.flip_pairs, classes) if recipe.flip else {}

    def forward(self, frames: Tensor, label: int) -> tuple[Tensor, int]:
        """Prepare a clip."""
        if self.flip and torch.rand(()) < 0.5:
            frames, label = frames.flip(-1), self.mirrored.get(label, label)
        return self.steps(frames), label


def mirrored_labels(pairs: tuple[tuple[int | str, int | str], ...], classes: list[str]) -> dict[int, int]:
    """Return for each class that means left or right the one it is when mirrored.

    Args:
        pairs: Pairs of classes, by name or index.
        classes: Names of the classes.

    Raises:
        ValueError: If one of them is no class.

    Example:
        >>> mirrored_labels((("turn left", "turn right"),), ["stop", "turn left", "turn right"])
        {1: 2, 2: 1}
    """

    def index(wanted: int | str) -> int:
        if wanted in classes:
            return classes.index(wanted)
        if str(wanted).isdecimal() and int(wanted) < len(classes):
            return int(wanted)
        raise ValueError(f"flip_pairs={pairs!r} names {wanted!r}, which is none of the {len(classes)} classes.")

    indices = [(index(one), index(other)) for one, other in pairs]
    return {one: other for pair in indices for one, other in (pair, pair[::-1])}


class ForEvaluation(nn.Module):
    """One or several crops of frames that are resized to just cover the backbone's size.

    Args:
        preprocessing: How the backbone wants its images.
        crops: Number of crops: one from the centre, several along the longer side from end to end.

    Shape:
        uint8 ``(T, 3, H', W')`` -> float ``(crops, T, 3, H, W)``
    """

    def __init__(self, preprocessing: Preprocessing, crops: int = 1) -> None:
        super().__init__()
        self.preprocessing, self.crops = preprocessing, crops
        self.normalize = v2.Compose(_normalized(preprocessing))

    def forward(self, frames: Tensor) -> Tensor:
        """Prepare all crops of a clip."""
        size, (height, width) = frames.shape[-2:], self.preprocessing.size
        factor = max(height / size[0], width / size[1])
        covering = [max(int(factor * side), least) for side, least in zip(size, (height, width), strict=True)]
        interpolation = InterpolationMode(self.preprocessing.interpolation)
        frames = v2.functional.resize(frames, covering, interpolation=interpolation, antialias=True)
        room = (covering[0] - height, covering[1] - width)
        places = [0.5] if self.crops == 1 else [k / (self.crops - 1) for k in range(self.crops)]
        corners = [(int(place * room[0] + 0.5), int(place * room[1] + 0.5)) for place in places]
        return torch.stack([self.normalize(frames[..., y : y + height, x : x + width]) for y, x in corners])


def to_image(clip: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Undo the normalization, to show frames, ``(T, 3, H, W) -> (T, H, W, 3)`` in [0, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (clip * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def _normalized(preprocessing: Preprocessing) -> list[nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(preprocessing.mean, preprocessing.std)]
