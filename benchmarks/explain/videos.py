"""Drawn videos whose class is decided by a digit that appears at a random time and place, among others that do not.

Four handwritten digits (from scikit-learn) appear one by one in a noisy video, each for three of eight frames and in
another of nine fields. One of them, the event, decides the class:

- *what*: it is one of the digits 0 to 4, which is the class; the others are of 5 to 9, and all stand still.
- *motion*: it moves left, right, up or down, which is the class; the others stand still. No single frame shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_aim.video.demo import Digits

SIZE, FRAMES = 64, 8  # pixels, frames per video
LENGTH = 3  # frames that a digit is shown
FIELDS, FIELD = 3, 20  # rows and columns of fields, and their width in pixels
WIDTH = 16  # of a digit in pixels
SHOWN = 4  # digits per video, the first of which is the event
STEP = 4  # pixels that a moving digit moves per frame
NOISE = 0.15  # standard deviation of each pixel; black to white is 1
MOVES = ((0, -1), (0, 1), (-1, 0), (1, 0))  # rows and columns: left, right, up, down
CLASSES = {"what": 5, "motion": len(MOVES)}


@dataclass(frozen=True)
class Drawn:
    """Drawn videos.

    Attributes:
        clips: Frames ``(M, T, 1, H, W)`` in about [-1, 1].
        labels: Classes ``(M,)``.
        events: Where and when the event is, True at its pixels, ``(M, T, H, W)``.
    """

    clips: Tensor
    labels: Tensor
    events: Tensor


def draw(task: str, count: int, held_out: bool, seed: int) -> Drawn:
    """Draw the videos of a task.

    Args:
        task: "what" or "motion".
        count: Number of videos.
        held_out: Whether to draw the digits that no other videos show.
        seed: Seed of all random numbers.

    Example:
        >>> drawn = draw("what", 2, held_out=True, seed=0)
        >>> drawn.clips.shape, drawn.events.flatten(2).any(-1).sum(-1).tolist()
        (torch.Size([2, 8, 1, 64, 64]), [3, 3])
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        digits, labels = Digits.load(held_out), torch.randint(CLASSES[task], (count,))
        clips, events = (
            torch.zeros(count, FRAMES, SIZE, SIZE),
            torch.zeros(count, FRAMES, SIZE, SIZE, dtype=torch.bool),
        )
        for clip, event, label in zip(clips, events, labels.tolist(), strict=True):
            for number, field in enumerate(torch.randperm(FIELDS**2)[:SHOWN].tolist()):
                is_event, begin = number == 0, int(torch.randint(FRAMES - LENGTH + 1, ()))
                image = F.interpolate(_chosen(digits, task, label, is_event)[None, None], (WIDTH, WIDTH))[0, 0]
                move = MOVES[label] if task == "motion" and is_event else (0, 0)
                for step in range(LENGTH):
                    box = _box(field, move, step - LENGTH // 2)
                    clip[begin + step][box] = clip[begin + step][box].maximum(image)
                    event[begin + step][box] |= is_event
        return Drawn(painted(clips).unsqueeze(2), labels, events)


def stills(count: int) -> tuple[Tensor, Tensor]:
    """Draw single images, to pretrain a backbone, and which digit is in which field.

    Shape:
        ``(M, 1, H, W)`` and 0 or 1 ``(M, 90)``
    """
    digits, images, targets = Digits.load(False), torch.zeros(count, SIZE, SIZE), torch.zeros(count, FIELDS**2, 10)
    for image, target in zip(images, targets, strict=True):
        for field in torch.randperm(FIELDS**2)[:SHOWN].tolist():
            chosen = int(torch.randint(len(digits.images), ()))
            image[_box(field, MOVES[field % 4], int(torch.randint(-1, 2, ())))] = F.interpolate(
                digits.images[chosen][None, None], (WIDTH, WIDTH)
            )[0, 0]
            target[field, digits.labels[chosen]] = 1
    return painted(images).unsqueeze(1), targets.flatten(1)


def painted(ink: Tensor) -> Tensor:
    """Add noise to an amount of ink in [0, 1], and return pixels in about [-1, 1]."""
    return 2 * (ink + NOISE * torch.randn_like(ink)) - 1


def _chosen(digits: Digits, task: str, label: int, is_event: bool) -> Tensor:
    """Return the image of a digit that may stand at this place."""
    if task == "what":
        fits = digits.labels == label if is_event else digits.labels >= CLASSES["what"]
    else:
        fits = torch.ones_like(digits.labels, dtype=torch.bool)
    candidates = digits.images[fits]
    return candidates[int(torch.randint(len(candidates), ()))]


def _box(field: int, move: tuple[int, int], steps: int) -> tuple[slice, slice]:
    """Return the pixels of a digit that is so many steps away from the middle of its field."""
    corners = (STEP * (1 + steps * to) + FIELD * cell for cell, to in zip(divmod(field, FIELDS), move, strict=True))
    return tuple(slice(corner, corner + WIDTH) for corner in corners)
