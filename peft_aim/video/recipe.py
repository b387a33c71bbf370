"""How an adapter is trained: every option, and the paper's settings as presets.

The presets follow the official configs, but for four slips in these, which are corrected: the large model for SSv2 has
two temporal adapters, as the paper says, not one; the learning rate of large models is that of all, since the
configs' factor of 0.1, meant for the backbone, slows down the adapters; the temporal embedding has no weight decay;
nothing that is frozen is left at random values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from peft_aim.recompute import SETTINGS

SSV2_MIRRORED = ((86, 87), (93, 94), (166, 167))  # classes of Something-Something v2 that mean left and right


CHOICES = {
    "precision": ("fp32", "bf16", "fp16"),
    "recompute": tuple(SETTINGS),
    "save_dtype": (None, "float16", "bfloat16"),
}


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained.

    Attributes:
        frames: Frames T per clip.
        stride: Distance of the frames in the video; None takes one of each of T equal segments.
        scale: Factor s on the joint adapter.
        temporal_adapters: 1, or 2 for another one before the temporal attention.
        drop_path: Final rate of stochastic depth on the temporal and joint branches.
        head_dropout: Rate of dropout before the head.
        epochs: Passes over the training videos.
        batch_size: Clips per step, of all processes together.
        accumulation: Parts in which a step is computed one after the other, to save memory.
        lr: Peak learning rate.
        lr_batch: The batch size that lr is meant for; for others it is scaled in proportion. None: lr is what is used.
        warmup_epochs: Epochs in which the learning rate rises, at most a quarter of all; then it falls to 0 along a
            cosine.
        weight_decay: Weight decay, on neither biases nor norms nor the temporal embedding.
        crop_scale: Least and greatest part of a frame's area that training crops keep.
        flip: Mirror half of the training clips.
        flip_pairs: Pairs of classes, by name or index, that a mirrored clip changes between: "turn left=turn right".
        color_jitter: Vary brightness, contrast, saturation and hue.
        rand_augment: Number and strength, 0 to 30, of RandAugment's operations.
        random_erasing: Part of the training clips of which a rectangle is replaced by noise.
        mixup: Parameter alpha of mixup's Beta(alpha, alpha); 0 mixes nothing.
        label_smoothing: Part of the target that is spread over all classes.
        precision: "fp32", or mixed with "bf16" or "fp16".
        recompute: What blocks compute again in the backward pass, to the same result in more time and less memory:
            "nothing"; "pointwise", norms and activations, worth a few percent; "mlp", also the hidden layer of the
            MLP, a third; "block", all but their input, nearly everything.
        save_dtype: "float16" or "bfloat16" rounds the adapter to half precision, once it is trained and before it is
            evaluated, for half the file; left out, it is saved as it is.
        compile: Compile the model.
        views: Clips per video and crops per frame that are averaged in evaluation.
        min_frames: Videos of fewer frames are skipped.
        workers: Processes that read videos, beside each training process.
        seed: Of all random numbers.

    Raises:
        ValueError: If a value is out of range.
    """

    frames: int = 8
    stride: int | None = None
    scale: float = 0.5
    temporal_adapters: int = 1
    drop_path: float = 0.2
    head_dropout: float = 0.5
    epochs: int = 30
    batch_size: int = 8
    accumulation: int = 1
    lr: float = 1e-3
    lr_batch: int | None = None
    warmup_epochs: float = 2.5
    weight_decay: float = 0.05
    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = False
    flip_pairs: tuple[tuple[int | str, int | str], ...] = ()
    color_jitter: bool = False
    rand_augment: tuple[int, int] | None = None
    random_erasing: float = 0.0
    mixup: float = 0.0
    label_smoothing: float = 0.0
    precision: str = "fp32"
    recompute: str = "nothing"
    save_dtype: str | None = None
    compile: bool = False
    views: tuple[int, int] = (1, 1)
    min_frames: int = 2
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("crop_scale", "rand_augment", "views"):  # lists, if they come from JSON
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else tuple(value))
        object.__setattr__(self, "flip_pairs", tuple(tuple(pair) for pair in self.flip_pairs))
        least, greatest = self.crop_scale
        operations, strength = self.rand_augment or (0, 0)
        positive = {name: (getattr(self, name) >= 1, "1 or more") for name in POSITIVE}
        chosen = {name: (getattr(self, name) in known, f"one of {known}") for name, known in CHOICES.items()}
        wanted = (
            positive
            | chosen
            | {
                "stride": (
                    self.stride is None or self.stride >= 1,
                    "1 or more; leave it out for one frame per segment",
                ),
                "lr": (0 < self.lr < math.inf, "a positive number"),
                "lr_batch": (self.lr_batch is None or self.lr_batch >= 1, "1 or more, or leave it out"),
                "temporal_adapters": (self.temporal_adapters in (1, 2), "1 or 2"),
                "scale": (math.isfinite(self.scale), "a finite number"),
                "warmup_epochs": (0 <= self.warmup_epochs < math.inf, "0 or a positive number"),
                "weight_decay": (0 <= self.weight_decay < math.inf, "0 or a positive number"),
                "drop_path": (0 <= self.drop_path < 1, "in [0, 1)"),
                "head_dropout": (0 <= self.head_dropout < 1, "in [0, 1)"),
                "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
                "random_erasing": (0 <= self.random_erasing <= 1, "in [0, 1]"),
                "mixup": (0 <= self.mixup < math.inf, "0 or a positive number"),
                "crop_scale": (0 < least <= greatest <= 1, "two numbers in (0, 1], the smaller one first"),
                "rand_augment": (
                    operations >= 0 and 0 <= strength <= 10,
                    "a number of operations and a strength, 0 to 10",
                ),
                "flip_pairs": (all(len(pair) == 2 for pair in self.flip_pairs), "pairs of classes"),
                "views": (min(self.views) >= 1, "1 or more clips and crops"),
                "workers": (self.workers >= 0, "0 or more"),
                "accumulation": (self.batch_size % max(1, self.accumulation) == 0, "a divisor of batch_size"),
            }
        )
        for name, (good, wish) in wanted.items():
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r} is out of range: give {wish}.")

    @property
    def peak_lr(self) -> float:
        """The learning rate at its peak, scaled with the batch size if that is wanted."""
        return self.lr * self.batch_size / self.lr_batch if self.lr_batch else self.lr

    @property
    def warmup(self) -> float:
        """Part of the training in which the learning rate rises."""
        return min(self.warmup_epochs / self.epochs, 0.25)


POSITIVE = ("frames", "epochs", "batch_size", "accumulation", "min_frames")

_PAPER = Recipe(
    epochs=30, batch_size=64, lr=3e-4, lr_batch=64, crop_scale=(0.08, 1.0), flip=True, precision="fp16", workers=4
)
_SPARSE = replace(_PAPER, epochs=50, stride=None)

PRESETS: dict[str, Recipe] = {
    "kinetics400": replace(_PAPER, frames=32, stride=4, views=(3, 1)),
    "kinetics400-large": replace(_PAPER, frames=32, stride=4, views=(3, 1), color_jitter=True),
    "kinetics700": replace(_PAPER, frames=8, stride=16, views=(3, 3)),
    "kinetics700-large": replace(_PAPER, frames=32, stride=4, views=(3, 3)),
    "ssv2": replace(
        _SPARSE,
        frames=8,
        scale=1.0,
        temporal_adapters=2,
        flip=False,
        flip_pairs=SSV2_MIRRORED,
        rand_augment=(4, 7),
        random_erasing=0.25,
        label_smoothing=0.1,
        views=(1, 3),
    ),
    "diving48": replace(_SPARSE, frames=32),
}


def preset(name: str, **changes: Any) -> Recipe:
    """Return one of the paper's recipes, with changes.

    Another number of frames keeps the span of a clip, as in the paper: 8 frames of Kinetics-400 have a stride of 16.

    Args:
        name: One of ``PRESETS``; those that end in "-large" are what differs for ViT-L/14.
        changes: Fields of :class:`Recipe` that are to differ.

    Raises:
        ValueError: If there is no such preset, or a value is out of range.

    Example:
        >>> preset("kinetics400").stride, preset("kinetics400", frames=8).stride
        (4, 16)
    """
    if name not in PRESETS:
        raise ValueError(f"There is no recipe {name!r}. There are {', '.join(PRESETS)}.")
    recipe = PRESETS[name]
    frames = changes.get("frames")
    if frames and recipe.stride and "stride" not in changes:
        changes = {**changes, "stride": max(1, recipe.frames * recipe.stride // frames)}
    return replace(recipe, **changes)
