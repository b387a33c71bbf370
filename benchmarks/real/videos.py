"""Real videos, decoded once, and the tasks made of them, all split by person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from peft_aim.video.data import ForEvaluation, ForTraining, Preprocessing, evaluation_frames, open_video
from peft_aim.video.data.sampling import training_frames
from peft_aim.video.recipe import Recipe

SIDE = 256  # pixels; larger frames are cached with their shorter side reduced to this
REVERSIBLE = ("accident", "hot", "lose", "thief")  # words whose direction frozen features tell apart
DEVELOPMENT = range(14, 19)  # training people on whom learning rates and defaults are chosen


@dataclass(frozen=True)
class Video:
    """A decoded video.

    Attributes:
        frames: uint8 ``(n, 3, H, W)``.
        label: Index of the class.
        group: The person, or anything else that makes videos dependent on each other.
        backward: Whether it is played backward: clips take the same frames, in reverse order.
    """

    frames: Tensor
    label: int
    group: str
    backward: bool = False

    def clip(self, chosen: list[int]) -> Tensor:
        """Return the chosen frames, uint8 ``(T, 3, H, W)``."""
        frames = self.frames[chosen]
        return frames.flip(0) if self.backward else frames


@dataclass(frozen=True)
class Task:
    """A task: videos to train on and to evaluate on.

    Attributes:
        classes: Class names. In a paired task, classes 0 and 1, 2 and 3 ... are reversals of each other.
        train: Training videos.
        held_out: Validation videos.
        paired: Whether the classes come in such pairs.
    """

    classes: Sequence[str]
    train: list[Video]
    held_out: list[Video]
    paired: bool = False

    def development(self) -> Task:
        """Return the task of choosing settings: the training people are split, and the others do not occur."""
        chosen = {str(person) for person in DEVELOPMENT}
        train = [video for video in self.train if video.group not in chosen]
        return Task(self.classes, train, [video for video in self.train if video.group in chosen], self.paired)


@cache
def decoded(cached: Path) -> dict[str, Tensor]:
    """Return the frames of all videos by path, from a file that :func:`decode` has written."""
    return torch.load(cached, mmap=True)


def decode(data: Path, cached: Path) -> None:
    """Decode the videos below a folder once, and write their frames to a file, which processes share."""
    if cached.exists():
        return
    paths = sorted((data / "signs").glob("*/*/*.mp4")) + sorted((data / "clips").glob("*/*/*"))
    with ThreadPoolExecutor() as pool:
        frames = {
            str(path.relative_to(data)): images for path, images in zip(paths, pool.map(_read, paths), strict=True)
        }
    torch.save(frames, cached.with_suffix(".tmp"))
    cached.with_suffix(".tmp").rename(cached)


def _read(path: Path) -> Tensor:
    with open_video(path) as video:
        images = video.read(range(len(video.seconds)))
    return resize(images, [SIDE], antialias=True) if min(images.shape[-2:]) > SIDE else images


def signs(cached: Path) -> Task:
    """Return the task of telling eight words of sign language apart."""
    names = sorted({Path(name).parent.name for name in _below(cached, "signs")})
    return _task(names, {split: _words(cached, split, names) for split in ("train", "val")})


def order(cached: Path) -> Task:
    """Return the task of telling four words and the same four played backwards apart."""
    names = [f"{word}{way}" for word in REVERSIBLE for way in ("", " backwards")]
    splits = {}
    for split in ("train", "val"):
        videos = _words(cached, split, REVERSIBLE)
        forwards = [replace(video, label=2 * video.label) for video in videos]
        splits[split] = forwards + [replace(video, label=video.label + 1, backward=True) for video in forwards]
    return _task(names, splits, paired=True)


def surveillance(cached: Path) -> Task:
    """Return the task of the surveillance clips, each a group of its own."""
    names = sorted({Path(name).parent.name for name in _below(cached, "clips")})
    splits: dict[str, list[Video]] = {"train": [], "val": []}
    for name, frames in _below(cached, "clips").items():
        split, label = Path(name).parts[1:3]
        splits[split].append(Video(frames, names.index(label), name))
    return _task(names, splits)


TASKS = {"signs": signs, "order": order, "surveillance": surveillance}


def _task(classes: Sequence[str], splits: dict[str, list[Video]], paired: bool = False) -> Task:
    return Task(classes, splits["train"], splits["val"], paired)


def _below(cached: Path, folder: str) -> dict[str, Tensor]:
    return {name: frames for name, frames in decoded(cached).items() if Path(name).parts[0] == folder}


def _words(cached: Path, split: str, words: Sequence[str]) -> list[Video]:
    found = []
    for name, frames in _below(cached, "signs").items():
        word, person, _ = Path(name).stem.rsplit("_", 2)
        if Path(name).parts[1] == split and word in words:
            found.append(Video(frames, words.index(word), str(int(person))))
    return found


class Clips:
    """Clips of videos for a backbone: random ones for training, the middle one for evaluation.

    Args:
        videos: The videos.
        recipe: Number of frames and augmentation, as in ``peft-aim train``.
        preprocessing: Preprocessing of the backbone's images.
        classes: Class names.
        device: Where clips are augmented and preprocessed.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        recipe: Recipe,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        device: str = "cpu",
    ) -> None:
        self.videos, self.recipe, self.device = videos, recipe, device
        self.augment = ForTraining(preprocessing, recipe, list(classes))
        self.plain = ForEvaluation(preprocessing)

    @cached_property
    def labels(self) -> Tensor:
        """Labels of all videos, ``(M,)``."""
        return torch.tensor([video.label for video in self.videos], device=self.device)

    def random(self, indices: Iterable[int]) -> Tensor:
        """Return one random, augmented clip of each of these videos, ``(B, T, 3, H, W)``."""
        clips = []
        for i in indices:
            video, recipe = self.videos[i], self.recipe
            chosen = training_frames(len(video.frames), recipe.frames, recipe.stride)
            clips.append(self.augment(video.clip(chosen).to(self.device), video.label)[0])
        return torch.stack(clips)

    def middle(self, indices: Iterable[int]) -> Tensor:
        """Return the single view of each of these videos, ``(B, T, 3, H, W)``."""
        clips = []
        for i in indices:
            video = self.videos[i]
            (chosen,) = evaluation_frames(len(video.frames), self.recipe.frames, self.recipe.stride)
            clips.append(self.plain(video.clip(chosen).to(self.device))[0])
        return torch.stack(clips)
