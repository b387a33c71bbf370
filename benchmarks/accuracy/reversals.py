"""Synthetic clips in pairs of classes, each the exact reversal of the other: only the order of frames tells which.

A handwritten digit (scikit-learn's) moves along x or y, grows, turns, or brightens and goes out again and again. Every
clip is drawn that way, and half of them are then run backwards, which makes ten classes out of five. So the clips of a
class, reversed, are distributed as its partner's are: whoever ignores the order of frames knows the pair at best, and
between its two classes is right on exactly one of a clip and its reversal.

What the class doesn't tell sways to and fro in a random phase, and all trembles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_aim.video.demo import RANGES, SIZE, Digits, draw

FRAMES = 8
CLASSES = (
    *("left to right", "right to left"),
    *("downwards", "upwards"),
    *("growing", "shrinking"),
    *("turning right", "turning left"),
    *("brightening, then out", "flashing, then fading"),
)
PROPERTIES = (*RANGES, "ink")  # what runs forwards in the classes 0, 2, 4 ...
VALIDATION = 300  # digits, of those that are not held out for the test

RUN = 0.9  # how far the class's own property runs, as a part of its range
SWAY = 0.1  # how far at most the others sway to either side
TREMBLE = 0.02  # deviation of each property in each frame
NOISE = 0.06  # deviation of each pixel, where 1 is from black to white
FAINTEST = 0.2  # ink of a digit that has gone out


@dataclass
class Clips:
    """Clips ``(M, T, 1, H, W)`` in [-1, 1] and their classes ``(M,)``."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Clips:
        """Return as many of them, from the first one on."""
        return Clips(self.pixels[:count], self.labels[:count])

    def reversed(self) -> Clips:
        """Return them run backwards, in the classes that they are in then."""
        return Clips(self.pixels.flip(1), partner(self.labels))


def partner(labels: Tensor) -> Tensor:
    """Return the classes of the reversed clips: 0 and 1, 2 and 3 ... are partners.

    Example:
        >>> partner(torch.tensor([0, 1, 6]))
        tensor([1, 0, 7])
    """
    return labels ^ 1


def digits_of(split: str) -> Digits:
    """Return the digits of "train", "validation" or "test", which share none; those for the test are held out."""
    digits = Digits.load(held_out=split == "test")
    part = {"train": slice(None, -VALIDATION), "validation": slice(-VALIDATION, None), "test": slice(None)}[split]
    return Digits(digits.images[part], digits.labels[part])


def training_clips(count: int, seed: int) -> Clips:
    """Draw clips of all classes in turn: the first ten have one of each."""
    labels = torch.arange(count) % len(CLASSES)
    clips = forwards(digits_of("train"), labels // 2, seed)
    clips.pixels = torch.where(labels[:, None, None, None, None] % 2 == 1, clips.pixels.flip(1), clips.pixels)
    return Clips(clips.pixels, labels)


def with_reversals(split: str, count: int, seed: int) -> Clips:
    """Draw half as many clips as are asked for, and add the reversal of each, in the same order."""
    clips = forwards(digits_of(split), torch.arange(count // 2) % len(PROPERTIES), seed)
    backwards = clips.reversed()
    return Clips(torch.cat([clips.pixels, backwards.pixels]), torch.cat([clips.labels, backwards.labels]))


def forwards(digits: Digits, kinds: Tensor, seed: int) -> Clips:
    """Draw clips in which one property runs forwards.

    Args:
        digits: The digits to draw.
        kinds: For each clip the index of the property, ``(M,)``.
        seed: Of all random numbers.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        masks = drawn(digits, courses(kinds))
        pixels = paint(masks.flatten(0, 1), len(kinds)).unflatten(0, (-1, FRAMES))
    return Clips(pixels.unsqueeze(2), 2 * kinds)


def courses(kinds: Tensor) -> dict[str, Tensor]:
    """Return what each property does in each frame, as a part of its range, ``(M, T)``.

    Args:
        kinds: The index of the property that runs, ``(M,)``; the others sway.
    """
    time, count = torch.arange(FRAMES) / (FRAMES - 1), len(kinds)
    found = {}
    for index, name in enumerate(PROPERTIES):
        cycles, phase, depth, centre = 1 + torch.rand(count, 1), *torch.rand(3, count, 1)
        sway = 0.25 + 0.5 * centre + SWAY * depth * (2 * math.pi * (cycles * time + phase)).sin()
        once = (1 - RUN) * centre + RUN * time
        again = (0.55 * cycles * time + 0.45 * phase) % 1  # a sawtooth
        runs = again if name == "ink" else once
        found[name] = torch.where((kinds == index)[:, None], runs, sway) + TREMBLE * torch.randn(count, FRAMES)
    return found


def drawn(digits: Digits, course: dict[str, Tensor]) -> Tensor:
    """Draw a digit on its course, ``(M, T, H, W)`` in [0, 1]: how much ink is where."""
    count = len(course["ink"])
    chosen = digits.images[torch.randint(len(digits.images), (count,))].repeat_interleave(FRAMES, 0)
    places = {name: least + (most - least) * course[name].flatten() for name, (least, most) in RANGES.items()}
    ink = FAINTEST + (1 - FAINTEST) * course["ink"].clamp(0, 1)
    return draw(chosen, **places).unflatten(0, (count, FRAMES)) * ink[..., None, None]


def paint(masks: Tensor, sheets: int) -> Tensor:
    """Paint in ink on darker paper, with noise.

    Args:
        masks: How much ink is where.
        sheets: Number of different papers and inks: pictures in a row share them.

    Shape:
        ``(M, H, W)`` in [0, 1] -> ``(M, H, W)`` in [-1, 1]
    """
    ink, paper = 0.6 + 0.4 * torch.rand(sheets), 0.3 * torch.rand(sheets)
    ink, paper = (shade.repeat_interleave(len(masks) // sheets)[:, None, None] for shade in (ink, paper))
    return 2 * (paper + masks * (ink - paper) + NOISE * torch.randn(len(masks), SIZE, SIZE)) - 1
