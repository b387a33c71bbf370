"""Training recipes: every hyperparameter, and the paper's settings as presets.

The presets follow the official configs, with four mistakes corrected: the large model for SSv2 has two temporal
adapters, as in the paper, not one; large models use the same learning rate as all others, since the configs' factor of
0.1, meant for the backbone, slows down the adapters; the temporal embedding has no weight decay; no frozen parameter
is left at random values, so that Swin has a temporal embedding, as the other models, in place of a random bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from peft_aim.config import TEMPORAL
from peft_aim.recompute import SETTINGS

SSV2_MIRRORED = ((86, 87), (93, 94), (166, 167))  # Something-Something v2 classes for left and right


CHOICES = {
    "precision": ("fp32", "bf16", "fp16"),
    "recompute": tuple(SETTINGS),
    "save_dtype": (None, "float16", "bfloat16"),
    "keep": ("best", "last"),
    "balance": ("none", "loss", "sampling"),
    "temporal": TEMPORAL,
    "temporal_embedding": (None, "blocks", "input"),
}


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters for training an adapter.

    Attributes:
        frames: Number of frames T per clip.
        stride: Distance between the frames of a clip, counted in frames of the video. None (the default) samples one
            frame from each of T equal segments.
        scale: Factor s on the joint adapter.
        temporal: How information passes between frames: "attention", the block's own, as in the paper; "conv", a
            convolution over time, as in ST-Adapter; or "auto", attention where it can run over time, and the
            convolution in other blocks.
        temporal_layers: Blocks in which information passes between frames: "even" (the first, the third, ...), "odd",
            or indices such as 0,2,4. None (the default) means all.
        causal: Whether frames get information from earlier frames only, so that the adapter can classify a stream at
            the cost of one frame per frame.
        preceded: Fraction of the training steps in which every clip follows another one without a break, as in a
            stream that runs on; only with causal. Adapters otherwise learn the order of frames for the start of a
            stream alone; but what follows others is learned in more steps, which take twice the time and memory.
        temporal_adapters: Temporal adapters per block: 1, or 2 to add one before the temporal attention.
        temporal_conv: Whether the adapter after temporal attention also has a convolution over time; the paper has
            none. None (the default) means that it has, wherever there is temporal attention.
        temporal_embedding: Where frames are embedded: in the temporal adapters of all "blocks", so that the order of
            frames is learned in fewer steps, or in the "input" of the first block, as in the paper. None (the default)
            is "blocks", or "input" with temporal="conv", which has no such adapters.
        drop_path: Stochastic depth rate of the last block, on the temporal and joint branches.
        head_dropout: Dropout rate before the head.
        epochs: Number of passes over the training videos. None (the default) is 6, or as many as 200 steps take: small
            data sets need steps, large ones epochs.
        keep: Weights that are evaluated and saved at the end: the "best", those of the epoch with the highest top-1
            accuracy on the val split (mAP with several labels per video; the lowest MAE with numbers), the first of
            them, if several have it, or the "last". Without a val split, the last are kept.
        patience: Stop training after this many evaluations in a row without a better one on the val split. None (the
            default) trains for all epochs.
        batch_size: Clips per optimizer step, over all processes.
        accumulation: Gradient accumulation steps; each batch is split into this many parts to save memory.
        lr: Peak learning rate. None (the default) is 0.6 divided by the token width of the backbone: 3.1e-3 for a
            ViT-Tiny, where it was tried, and 7.8e-4 for a ViT-B.
        lr_batch: Batch size that a given lr is meant for; the peak learning rate becomes lr * batch_size / lr_batch.
            None (the default) uses lr unscaled.
        warmup_epochs: Epochs of linear learning rate warmup, at most a quarter of all epochs; a cosine decay to 0
            follows. None (the default) is a tenth of all epochs.
        max_grad_norm: Largest norm of the gradient; larger ones are scaled down. 0 turns clipping off.
        weight_decay: Weight decay, on all but biases, norms, the temporal embedding and the temporal convolution.
        balance: How rare classes count as much as frequent ones: "loss" weights the loss of a clip by the inverse
            frequency of its class (of several labels per video, those that a video has against those it hasn't),
            "sampling" draws equally many training videos of all classes in each epoch. "none"
            leaves the classes as they are.
        crop_scale: Smallest and largest fraction of a frame's area that a random resized crop keeps in training.
        flip: Flip training clips horizontally with probability 0.5.
        flip_pairs: Pairs of classes, by name or index, that a horizontal flip swaps, such as "turn left=turn right".
        color_jitter: Jitter brightness, contrast, saturation and hue.
        rand_augment: Number of RandAugment operations per clip and their magnitude, 0 to 30.
        random_erasing: Probability that a rectangle of a training clip is replaced by noise.
        mixup: Mixup alpha, the parameter of Beta(alpha, alpha); 0 turns mixup off.
        label_smoothing: Label smoothing, the fraction of the target that is spread over all classes.
        precision: Training precision: "fp32", or mixed precision with "bf16" or "fp16".
        recompute: Activation checkpointing: what blocks recompute in the backward pass, which saves activation memory,
            costs time and leaves the result the same. "nothing"; "pointwise", norms and activation functions (saves a
            few percent); "mlp", also the hidden layer of the MLP (a third); "block", all but the block's input (nearly
            all).
        save_dtype: Round the trained adapter to "float16" or "bfloat16" before it is evaluated and saved, which halves
            the file. None (the default) saves it unrounded.
        compile: Compile the model with torch.compile.
        views: Views (clips x crops) per video whose probabilities are averaged in evaluation.
        min_frames: Skip videos with fewer frames.
        fps: Frames per second of videos that are folders of images.
        workers: Processes that load videos, per training process.
        seed: Random seed.

    Raises:
        ValueError: If a value is out of range.
    """

    frames: int = 8
    stride: int | None = None
    scale: float = 0.5
    temporal: str = "attention"
    temporal_layers: str | tuple[int, ...] | None = None
    causal: bool = False
    preceded: float = 0.0
    temporal_adapters: int = 1
    temporal_conv: bool | None = None
    temporal_embedding: str | None = None
    drop_path: float = 0.0
    head_dropout: float = 0.0
    epochs: int | None = None
    keep: str = "best"
    patience: int | None = None
    batch_size: int = 8
    accumulation: int = 1
    lr: float | None = None
    lr_batch: int | None = None
    warmup_epochs: float | None = None
    max_grad_norm: float = 1.0
    weight_decay: float = 0.05
    balance: str = "none"
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
    fps: float = 12.0
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("crop_scale", "rand_augment", "views"):  # JSON turns tuples into lists
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else tuple(value))
        object.__setattr__(self, "flip_pairs", tuple(tuple(pair) for pair in self.flip_pairs))
        if isinstance(self.temporal_layers, list):
            object.__setattr__(self, "temporal_layers", tuple(self.temporal_layers))
        least, greatest = self.crop_scale
        operations, strength = self.rand_augment or (0, 0)
        positive = {name: (getattr(self, name) >= 1, "1 or more") for name in POSITIVE}
        chosen = {name: (getattr(self, name) in known, f"one of {known}") for name, known in CHOICES.items()}
        checks = (
            positive
            | chosen
            | {
                "stride": (
                    self.stride is None or self.stride >= 1,
                    "1 or more, or leave it out to sample one frame per segment",
                ),
                "epochs": (self.epochs is None or self.epochs >= 1, "1 or more, or leave it out"),
                "patience": (self.patience is None or self.patience >= 1, "1 or more, or leave it out"),
                "lr": (self.lr is None or 0 < self.lr < math.inf, "a positive number, or leave it out"),
                "lr_batch": (self.lr_batch is None or self.lr_batch >= 1, "1 or more, or leave it out"),
                "temporal_adapters": (self.temporal_adapters in (1, 2), "1 or 2"),
                "temporal_layers": (
                    self.temporal_layers in (None, "even", "odd")
                    or (isinstance(self.temporal_layers, tuple) and min(self.temporal_layers, default=-1) >= 0),
                    "'even', 'odd' or indices of blocks, or leave it out",
                ),
                "scale": (math.isfinite(self.scale), "a finite number"),
                "warmup_epochs": (
                    self.warmup_epochs is None or 0 <= self.warmup_epochs < math.inf,
                    "0 or a positive number, or leave it out",
                ),
                "max_grad_norm": (0 <= self.max_grad_norm < math.inf, "0 or a positive number"),
                "weight_decay": (0 <= self.weight_decay < math.inf, "0 or a positive number"),
                "drop_path": (0 <= self.drop_path < 1, "a number in [0, 1)"),
                "head_dropout": (0 <= self.head_dropout < 1, "a number in [0, 1)"),
                "preceded": (0 <= self.preceded <= 1, "a number in [0, 1]"),
                "label_smoothing": (0 <= self.label_smoothing < 1, "a number in [0, 1)"),
                "random_erasing": (0 <= self.random_erasing <= 1, "a number in [0, 1]"),
                "mixup": (0 <= self.mixup < math.inf, "0 or a positive number"),
                "crop_scale": (0 < least <= greatest <= 1, "two numbers in (0, 1], the smaller first"),
                "rand_augment": (
                    operations >= 0 and 0 <= strength <= 30,
                    "a number of operations and a magnitude from 0 to 30",
                ),
                "flip_pairs": (all(len(pair) == 2 for pair in self.flip_pairs), "pairs of classes"),
                "views": (min(self.views) >= 1, "at least 1 clip and 1 crop"),
                "workers": (self.workers >= 0, "0 or more"),
                "fps": (0 < self.fps < math.inf, "a positive number"),
                "accumulation": (self.batch_size % max(1, self.accumulation) == 0, "a divisor of batch_size"),
            }
        )
        for name, (valid, expected) in checks.items():
            if not valid:
                raise ValueError(f"{name}={getattr(self, name)!r} is invalid. Give {expected}.")
        if self.lr is None and self.lr_batch:
            raise ValueError(
                f"lr_batch={self.lr_batch} is the batch size that a learning rate is meant for, but lr is not given, "
                "and its default does not depend on the batch size. Give lr as well, or leave out lr_batch."
            )
        if self.patience and self.keep == "last":
            raise ValueError(
                f"patience={self.patience} stops training after the best epoch, but keep='last' keeps a later one. "
                "Give keep='best', or leave out patience."
            )

    @property
    def peak_lr(self) -> float:
        """Peak learning rate, scaled with the batch size if ``lr_batch`` is set; needs ``lr``."""
        return self.lr * self.batch_size / self.lr_batch if self.lr_batch else self.lr

    @property
    def warmup(self) -> float:
        """Fraction of the training steps spent on learning rate warmup, at most a quarter."""
        return 0.1 if self.warmup_epochs is None else min(self.warmup_epochs / self.epochs, 0.25)

    def steps(self, count: int) -> int:
        """Return the number of optimizer steps of an epoch of so many training videos; the last may be partly filled.

        Example:
            >>> Recipe(batch_size=8).steps(52)
            7
        """
        return math.ceil(count / self.batch_size)

    def for_videos(self, count: int) -> Recipe:
        """Return the recipe with a number of epochs: the one given, or the default for a number of training videos.

        Example:
            >>> Recipe(batch_size=8).for_videos(80).epochs, Recipe(epochs=30).for_videos(80).epochs
            (20, 30)
        """
        least = math.ceil(LEAST_STEPS / self.steps(count))
        return self if self.epochs else replace(self, epochs=max(LEAST_EPOCHS, least))

    def for_width(self, width: int) -> Recipe:
        """Return the recipe with a learning rate: the one given, or the default for a token width.

        The best rates for widths of 64 and 192 are about inversely proportional to the width; no others were tried.

        Example:
            >>> Recipe().for_width(120).lr, Recipe(lr=1e-3).for_width(120).lr
            (0.005, 0.001)
        """
        return self if self.lr is not None else replace(self, lr=round(LR_TIMES_WIDTH / width, 8))

    def for_frames(self, frames: int) -> Recipe:
        """Return the recipe for clips of as many frames, over the same time span.

        Example:
            >>> Recipe(frames=32, stride=4).for_frames(8).stride
            16
        """
        return replace(self, frames=frames, stride=self.stride and max(1, self.frames * self.stride // frames))

    def with_order(self) -> Recipe:
        """Return the recipe with what makes the order of frames visible to attention: as given, or the default.

        Example:
            >>> Recipe().with_order().temporal_conv, Recipe(temporal="conv").with_order().temporal_embedding
            (True, 'input')
        """
        attends = self.temporal != "conv"
        conv = attends if self.temporal_conv is None else self.temporal_conv
        embedding = self.temporal_embedding or ("blocks" if attends else "input")
        return replace(self, temporal_conv=conv, temporal_embedding=embedding)


LEAST_EPOCHS, LEAST_STEPS = 6, 200
LR_TIMES_WIDTH = 0.6
POSITIVE = ("frames", "batch_size", "accumulation", "min_frames")

_PAPER = Recipe(
    temporal_conv=False,
    temporal_embedding="input",
    drop_path=0.2,
    head_dropout=0.5,
    epochs=30,
    warmup_epochs=2.5,
    max_grad_norm=0.0,
    batch_size=64,
    lr=3e-4,
    lr_batch=64,
    crop_scale=(0.08, 1.0),
    flip=True,
    precision="fp16",
    workers=4,
    keep="last",
)
_SPARSE = replace(_PAPER, epochs=50, stride=None)

PRESETS: dict[str, Recipe] = {
    "kinetics400": replace(_PAPER, frames=32, stride=4, views=(3, 1)),
    "kinetics400-large": replace(_PAPER, frames=32, stride=4, views=(3, 1), color_jitter=True),
    "kinetics400-swin": replace(_PAPER, frames=32, stride=2, views=(4, 3), temporal_layers="even"),
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
    """Return one of the paper's recipes, with some options overridden.

    Changing the number of frames keeps the time span of a clip, as in the paper: 8 frames of Kinetics-400 have a
    stride of 16.

    Args:
        name: One of ``PRESETS``; names that end in "-large" and "-swin" are the settings for ViT-L/14 and
            Swin where they differ.
        changes: Fields of :class:`Recipe` to override.

    Raises:
        ValueError: If the preset does not exist, or a value is out of range.

    Example:
        >>> preset("kinetics400").stride, preset("kinetics400", frames=8).stride
        (4, 16)
    """
    if name not in PRESETS:
        raise ValueError(f"There is no recipe {name!r}. Choose one of {', '.join(PRESETS)}.")
    recipe = PRESETS[name]
    frames = changes.get("frames")
    if frames and "stride" not in changes:
        recipe = recipe.for_frames(frames)
    return replace(recipe, **changes)
