"""Handwritten digits, drawn as still images and as videos whose class no single frame shows.

The digits are those of scikit-learn. Five numbers determine an image: the index of the digit, its position (x and y),
its size and its angle. In a video one of two numbers runs through a *ramp*, and the class determines which of them and
in which direction; the other one stays at a random point of the same ramp. So in any single frame, all numbers have
the same distribution for every class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

SIZE = 32  # pixels
LENGTH = 16  # frames per video
HELD_OUT = 397  # number of digits that appear in validation videos only

# what runs through the ramp, forwards (+1) or backwards (-1), by task and class
TASKS: dict[str, dict[str, tuple[str, int]]] = {
    "motion": {"left": ("x", -1), "right": ("x", 1), "up": ("y", -1), "down": ("y", 1)},
    "change": {"grow": ("size", 1), "shrink": ("size", -1), "turn left": ("angle", -1), "turn right": ("angle", 1)},
}
RANGES = {"x": (-0.65, 0.65), "y": (-0.65, 0.65), "size": (0.3, 0.7), "angle": (-1.3, 1.3)}
STILL = {"motion": ("size", "angle"), "change": ("x", "y")}  # constant within a video


@dataclass
class Digits:
    """Digits to draw: ``images (M, 8, 8)`` in [0, 1] and ``labels (M,)``."""

    images: Tensor
    labels: Tensor

    @classmethod
    def load(cls, held_out: bool) -> Digits:
        """Load the held-out digits for validation, or all others."""
        data = load_digits()
        part = slice(-HELD_OUT, None) if held_out else slice(None, -HELD_OUT)
        return cls(torch.tensor(data.images[part]).float() / 16, torch.tensor(data.target[part]))


def draw(digits: Tensor, x: Tensor, y: Tensor, size: Tensor, angle: Tensor) -> Tensor:
    """Draw one digit per image.

    Args:
        digits: Images of the digits.
        x: Center, from -1 (left) to 1 (right).
        y: Center, from -1 (top) to 1 (bottom).
        size: Width of the digit as a fraction of the image's width.
        angle: Rotation in radians, clockwise.

    Shape:
        ``(M, 8, 8)`` and four times ``(M,)`` -> ``(M, SIZE, SIZE)``
    """
    cos, sin = angle.cos() / size, angle.sin() / size
    to_digit = torch.stack(
        [torch.stack([cos, sin, -cos * x - sin * y], 1), torch.stack([-sin, cos, sin * x - cos * y], 1)], 1
    )
    grid = F.affine_grid(to_digit, [len(digits), 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(digits[:, None], grid, align_corners=False)[:, 0]


def stills(count: int) -> tuple[Tensor, Tensor]:
    """Draw still images with multi-label targets.

    Args:
        count: Number of images M.

    Returns:
        The images, and 0 or 1 for each of 24 labels: 10 digits, 4 quarters of x, 4 of y, 3 thirds of size, 3 of angle.

    Shape:
        ``(M, SIZE, SIZE)`` in [0, 1], ``(M, 24)``
    """
    digits = Digits.load(held_out=False)
    chosen = torch.randint(len(digits.images), (count,))
    points = {name: torch.rand(count) for name in RANGES}
    images = draw(digits.images[chosen], **{name: _scale(name, point) for name, point in points.items()})
    parts = {"x": 4, "y": 4, "size": 3, "angle": 3}
    targets = [F.one_hot((points[name] * n).long(), n) for name, n in parts.items()]
    return images, torch.cat([F.one_hot(digits.labels[chosen], 10), *targets], dim=1).float()


def videos(task: str, per_class: int, held_out: bool) -> tuple[Tensor, list[str]]:
    """Draw the videos of a task.

    Args:
        task: "motion" or "change".
        per_class: Number of videos of each class.
        held_out: Whether to draw the held-out digits, which no other videos or still images show.

    Returns:
        The videos and the names of their classes.

    Shape:
        ``(M, LENGTH, SIZE, SIZE)`` in [0, 1]
    """
    digits = Digits.load(held_out)
    names = [name for name in TASKS[task] for _ in range(per_class)]
    chosen = digits.images[torch.randint(len(digits.images), (len(names),))]
    still = {what: torch.rand(len(names)) for what in STILL[task]}
    ramp, start = torch.linspace(0, 0.85, LENGTH), 0.15 * torch.rand(len(names))
    frames = []
    waiting = {what: ramp[torch.randint(LENGTH, (len(names),))] for what in RANGES if what not in still}
    for moment, rest in zip(ramp, ramp.flip(0), strict=True):
        points = dict(still)
        for what, point in waiting.items():
            runs = torch.tensor([sign if what == running else 0 for running, sign in map(TASKS[task].get, names)])
            points[what] = start + torch.where(runs == 0, point, torch.where(runs > 0, moment, rest))
        frames.append(draw(chosen, **{what: _scale(what, point) for what, point in points.items()}))
    return torch.stack(frames, dim=1), names


def write_videos(root: Path, task: str, split: str, per_class: int) -> None:
    """Write the videos of a task to ``root/<split>/<class>/*.mp4``, each in random colors."""
    drawn, names = videos(task, per_class, held_out=split == "val")
    progress = tqdm(drawn, desc=f"Writing {task}/{split}", unit="video", leave=False)
    for number, (video, name) in enumerate(zip(progress, names, strict=True)):
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        ink, paper = 0.7 + 0.3 * torch.rand(3), 0.2 * torch.rand(3)
        write_video(folder / f"{number:04}.mp4", paper + video[..., None] * (ink - paper))


def write_video(path: Path, frames: Tensor) -> None:
    """Write frames ``(T, H, W, 3)`` in [0, 1] to an mp4 file with 8 frames per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "12", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for image in (frames * 255).byte().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def _scale(name: str, point: Tensor) -> Tensor:
    least, greatest = RANGES[name]
    return least + (greatest - least) * point
