"""Synthetic clips in pairs of classes that are exact reversals: only the order of frames distinguishes the two.

A handwritten digit (from scikit-learn) moves along x or y, grows, turns, or brightens and goes out repeatedly. Every
clip is drawn in this direction. Half of the clips are then reversed, which turns five classes into ten. Reversed clips
of a class therefore have the same distribution as clips of its partner. A model that ignores the order of frames can
at best identify the pair; between the two classes, it is right on exactly one of a clip and its reversal.

The properties that do not define the class oscillate with a random phase, and all properties jitter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.training.metrics import partner
from peft_aim.video.demo import RANGES, SIZE, Digits, draw

FRAMES = 8
CLASSES = (
    *("left to right", "right to left"),
    *("downwards", "upwards"),
    *("growing", "shrinking"),
    *("turning right", "turning left"),
    *("brightening, then out", "flashing, then fading"),
)
PROPERTIES = (*RANGES, "ink")  # the one that runs forwards in class 0, 2, 4 ...
VALIDATION = 300  # digits, taken from those not held out for the test

RUN = 0.9  # distance that the property of the class runs, as a fraction of its range
SWAY = 0.1  # maximum amplitude of the oscillation of the others
TREMBLE = 0.02  # standard deviation of the jitter of each property in each frame
NOISE = 0.06  # standard deviation of the noise of each pixel; black to white is 1
FAINTEST = 0.2  # minimum ink, of a digit that has gone out


@dataclass
class Clips:
    """Clips ``(M, T, 1, H, W)`` in [-1, 1] and their classes ``(M,)``."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Clips:
        """Return the first ``count`` clips."""
        return Clips(self.pixels[:count], self.labels[:count])

    def reversed(self) -> Clips:
        """Return the reversed clips, labeled with the partner classes."""
        return Clips(self.pixels.flip(1), partner(self.labels))


def digits_of(split: str) -> Digits:
    """Return the digits of "train", "validation" or "test". The splits are disjoint; the test digits are held out."""
    digits = Digits.load(held_out=split == "test")
    part = {"train": slice(None, -VALIDATION), "validation": slice(-VALIDATION, None), "test": slice(None)}[split]
    return Digits(digits.images[part], digits.labels[part])


def training_clips(count: int, seed: int) -> Clips:
    """Draw clips that cycle through the classes: the first ten have one of each."""
    labels = torch.arange(count) % len(CLASSES)
    clips = forwards(digits_of("train"), labels // 2, seed)
    clips.pixels = torch.where(labels[:, None, None, None, None] % 2 == 1, clips.pixels.flip(1), clips.pixels)
    return Clips(clips.pixels, labels)


def with_reversals(split: str, count: int, seed: int) -> Clips:
    """Draw ``count // 2`` clips and append their reversals in the same order."""
    clips = forwards(digits_of(split), torch.arange(count // 2) % len(PROPERTIES), seed)
    backwards = clips.reversed()
    return Clips(torch.cat([clips.pixels, backwards.pixels]), torch.cat([clips.labels, backwards.labels]))


def forwards(digits: Digits, kinds: Tensor, seed: int) -> Clips:
    """Draw clips in which one property runs forwards.

    Args:
        digits: The digits to draw.
        kinds: Index of the property for each clip, ``(M,)``.
        seed: Seed of all random numbers.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        masks = drawn(digits, courses(kinds))
        pixels = paint(masks.flatten(0, 1), len(kinds)).unflatten(0, (-1, FRAMES))
    return Clips(pixels.unsqueeze(2), 2 * kinds)


def courses(kinds: Tensor) -> dict[str, Tensor]:
    """Return the course of each property over the frames, as fractions of its range, ``(M, T)``.

    Args:
        kinds: Index of the property that runs, ``(M,)``; the others oscillate.
    """
    time, count = torch.arange(FRAMES) / (FRAMES - 1), len(kinds)
    found = {}
    for index, name in enumerate(PROPERTIES):
        cycles, phase, depth, center = 1 + torch.rand(count, 1), *torch.rand(3, count, 1)
        sway = 0.25 + 0.5 * center + SWAY * depth * (2 * math.pi * (cycles * time + phase)).sin()
        once = (1 - RUN) * center + RUN * time
        again = (0.55 * cycles * time + 0.45 * phase) % 1  # a sawtooth
        runs = again if name == "ink" else once
        found[name] = torch.where((kinds == index)[:, None], runs, sway) + TREMBLE * torch.randn(count, FRAMES)
    return found


def drawn(digits: Digits, course: dict[str, Tensor]) -> Tensor:
    """Draw each digit on its course, as amounts of ink ``(M, T, H, W)`` in [0, 1]."""
    count = len(course["ink"])
    chosen = digits.images[torch.randint(len(digits.images), (count,))].repeat_interleave(FRAMES, 0)
    properties = {name: low + (high - low) * course[name].flatten() for name, (low, high) in RANGES.items()}
    ink = FAINTEST + (1 - FAINTEST) * course["ink"].clamp(0, 1)
    return draw(chosen, **properties).unflatten(0, (count, FRAMES)) * ink[..., None, None]


def paint(masks: Tensor, sheets: int) -> Tensor:
    """Paint images in bright ink on darker paper, with noise.

    Args:
        masks: Amount of ink at each pixel.
        sheets: Number of pairs of paper and ink; consecutive images share one.

    Shape:
        ``(M, H, W)`` in [0, 1] -> ``(M, H, W)`` in [-1, 1]
    """
    ink, paper = 0.6 + 0.4 * torch.rand(sheets), 0.3 * torch.rand(sheets)
    ink, paper = (shade.repeat_interleave(len(masks) // sheets)[:, None, None] for shade in (ink, paper))
    return 2 * (paper + masks * (ink - paper) + NOISE * torch.randn(len(masks), SIZE, SIZE)) - 1
