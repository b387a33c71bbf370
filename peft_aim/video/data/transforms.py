"""Preprocessing and augmentation of clips for the backbone, the same for all frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from peft_aim.video.data.labels import classes_in
from peft_aim.video.data.listing import Label
from peft_aim.video.recipe import Recipe


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of the backbone's images.

    Attributes:
        size: Height and width in pixels.
        mean: Mean of each channel, for values in [0, 1].
        std: Standard deviation of each channel, for values in [0, 1].
        interpolation: "nearest", "bilinear" or "bicubic".
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):  # JSON turns tuples into lists
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True)
class Cutout:
    """A part of each frame of a clip, resized to the backbone's images, maybe mirrored.

    Attributes:
        box: Top, left, height and width of the part in pixels, of the mirrored frame.
        flipped: Whether frames are mirrored.
        size: Height and width of the images in pixels.
        interpolation: Interpolation mode.

    Shape:
        uint8 ``(*, 3, H', W') -> (*, 3, H, W)``
    """

    box: tuple[int, int, int, int]
    flipped: bool
    size: tuple[int, int]
    interpolation: InterpolationMode

    def __call__(self, frames: Tensor) -> Tensor:
        """Cut out and resize frames."""
        frames = frames.flip(-1) if self.flipped else frames
        options = {"size": self.size, "interpolation": self.interpolation, "antialias": True}
        return v2.functional.resized_crop(frames, *self.box, **options)


class ForTraining(nn.Module):
    """Training augmentation of a recipe: random crop, flip and others, drawn once for all frames of a clip.

    Args:
        preprocessing: Preprocessing of the backbone's images.
        recipe: The recipe, for its augmentation options.
        classes: Class names.

    Shape:
        uint8 ``(T, 3, H', W')`` and a label -> float ``(T, 3, H, W)`` and a label; the label changes if the clip is
        flipped and its class, or one of its classes, is in ``flip_pairs``.
    """

    def __init__(self, preprocessing: Preprocessing, recipe: Recipe, classes: list[str]) -> None:
        super().__init__()
        interpolation = InterpolationMode(preprocessing.interpolation)
        self.crop = v2.RandomResizedCrop(preprocessing.size, recipe.crop_scale, interpolation=interpolation)
        steps: list[nn.Module] = [self.crop]
        if recipe.color_jitter:
            steps.append(v2.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1))
        if recipe.rand_augment:
            nearest, bilinear = InterpolationMode.NEAREST, InterpolationMode.BILINEAR
            turning = nearest if interpolation == nearest else bilinear  # torchvision turns tensors no better
            steps.append(v2.RandAugment(*recipe.rand_augment, interpolation=turning))
        steps += _normalized(preprocessing)
        if recipe.random_erasing:
            steps.append(v2.RandomErasing(recipe.random_erasing, value="random"))
        self.steps = v2.Compose(steps)
        self.classes, self.flip = classes, recipe.flip
        self.mirrored = mirrored_labels(recipe.flip_pairs, classes) if recipe.flip else {}

    def forward(self, frames: Tensor, label: Label) -> tuple[Tensor, Label]:
        """Augment and preprocess a clip."""
        cutout = self.cutout(frames.shape[-2:])
        return self.finish(cutout(frames), label, cutout)

    def cutout(self, size: Sequence[int]) -> Cutout:
        """Draw the part of the frames of a clip to use, which can be cut out of each as soon as it is decoded.

        Args:
            size: Height and width of the frames in pixels.
        """
        flipped = bool(self.flip and torch.rand(()) < 0.5)
        box = self.crop.make_params([torch.empty(1, *size, device="meta")])
        chosen = tuple(int(box[side]) for side in ("top", "left", "height", "width"))
        return Cutout(chosen, flipped, tuple(self.crop.size), self.crop.interpolation)

    def finish(self, cut: Tensor, label: Label, cutout: Cutout) -> tuple[Tensor, Label]:
        """Augment and normalize a clip that is cut out already."""
        for step in self.steps.transforms[1:]:
            cut = step(cut)
        if not (cutout.flipped and self.mirrored):
            return cut, label
        classes = frozenset(self.mirrored.get(one, one) for one in classes_in(label))
        return cut, min(classes) if isinstance(label, int) else classes


def mirrored_labels(pairs: tuple[tuple[int | str, int | str], ...], classes: list[str]) -> dict[int, int]:
    """Map each class of the pairs to the class that it becomes when flipped horizontally.

    Args:
        pairs: Pairs of classes, by name or index.
        classes: Class names.

    Raises:
        ValueError: If one of them is not a class, is paired with itself, or is in several pairs.

    Example:
        >>> mirrored_labels((("turn left", "turn right"),), ["stop", "turn left", "turn right"])
        {1: 2, 2: 1}
    """

    def index(wanted: int | str) -> int:
        if wanted in classes:
            return classes.index(wanted)
        if str(wanted).isdecimal() and int(wanted) < len(classes):
            return int(wanted)
        raise ValueError(f"flip_pairs={pairs!r} contains {wanted!r}, which is not one of the {len(classes)} classes.")

    mirrored: dict[int, int] = {}
    for one, other in pairs:
        for here, there in ((index(one), index(other)), (index(other), index(one))):
            if here == there:
                raise ValueError(
                    f"flip_pairs={pairs!r} pairs the class {classes[here]!r} with itself. Leave out this pair: "
                    "classes without a pair keep their label."
                )
            if mirrored.setdefault(here, there) != there:
                raise ValueError(
                    f"flip_pairs={pairs!r} pairs the class {classes[here]!r} with both {classes[mirrored[here]]!r} "
                    f"and {classes[there]!r}. Give one pair for each class."
                )
    return mirrored


class ForEvaluation(nn.Module):
    """Resize frames to the smallest size that covers the backbone's image size, and take one or several crops.

    Args:
        preprocessing: Preprocessing of the backbone's images.
        crops: Number of crops: 1 is a center crop, more are spaced evenly along the longer side, from end to end.

    Shape:
        uint8 ``(T, 3, H', W')`` -> float ``(crops, T, 3, H, W)``
    """

    def __init__(self, preprocessing: Preprocessing, crops: int = 1) -> None:
        super().__init__()
        self.preprocessing, self.crops = preprocessing, crops
        self.normalize = v2.Compose(_normalized(preprocessing))

    def forward(self, frames: Tensor) -> Tensor:
        """Preprocess a clip and return all of its crops."""
        return self.cropped(self.covering(frames))

    def covering(self, frames: Tensor) -> Tensor:
        """Resize frames to the smallest size that covers the image size, uint8 ``(*, 3, H', W')``."""
        size, least = frames.shape[-2:], self.preprocessing.size
        factor = max(short / side for short, side in zip(least, size, strict=True))
        covering = [max(int(factor * side), short) for side, short in zip(size, least, strict=True)]
        interpolation = InterpolationMode(self.preprocessing.interpolation)
        return v2.functional.resize(frames, covering, interpolation=interpolation, antialias=True)

    def cropped(self, frames: Tensor) -> Tensor:
        """Take the crops of frames that cover the image size, ``(crops, T, 3, H, W)``."""
        height, width = self.preprocessing.size
        room = (frames.shape[-2] - height, frames.shape[-1] - width)
        offsets = [0.5] if self.crops == 1 else [k / (self.crops - 1) for k in range(self.crops)]
        corners = [(int(offset * room[0] + 0.5), int(offset * room[1] + 0.5)) for offset in offsets]
        return torch.stack([self.normalize(frames[..., y : y + height, x : x + width]) for y, x in corners])


def to_image(clip: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Undo the normalization, to draw frames, ``(T, 3, H, W) -> (T, H, W, 3)`` in [0, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (clip * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def _normalized(preprocessing: Preprocessing) -> list[nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(preprocessing.mean, preprocessing.std, inplace=True)]
