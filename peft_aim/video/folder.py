"""A folder ``root/<split>/<class>/*`` of video files as a dataset of clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from peft_aim.video.decode import BrokenVideo, FrameIndex, index_frames, read_frames

SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif"}


@dataclass
class Scan:
    """What a look at all files of a split has found.

    Attributes:
        videos: The videos with their class and the places of their frames.
        broken: Files that cannot be read, with the reason.
    """

    videos: list[tuple[Path, int, FrameIndex]] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)


def class_names(root: Path) -> list[str]:
    """Return the classes of a folder of videos: the names of the folders in its split ``train``, sorted.

    Raises:
        ValueError: If there are none, with the layout that is expected, or if there is only one.
    """
    classes = sorted(path.name for path in (root / "train").glob("[!.]*") if path.is_dir())
    if not classes:
        raise ValueError(
            f"{root} has no folders train/<class> in it. Videos are expected as {root}/train/<class>/*.mp4."
        )
    if len(classes) == 1:
        raise ValueError(f"{root / 'train'} has one class only, {classes[0]!r}: there is nothing to tell apart.")
    return classes


def scan(root: Path, split: str, classes: list[str]) -> Scan:
    """Open every video of a split once, so that broken ones are known before training starts.

    Args:
        root: The folder with the splits in it.
        split: "train" or "val".
        classes: Names of the classes.

    Raises:
        ValueError: If the split has a class that training doesn't know, or no video that can be read.
    """
    unknown = sorted({path.name for path in (root / split).glob("[!.]*") if path.is_dir()} - set(classes))
    if unknown:
        raise ValueError(f"{root / split} has the classes {unknown}, which {root / 'train'} doesn't have: {classes}.")
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / split / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    found = Scan()
    for path, label in tqdm(files, desc=f"Scanning {split}", unit="video", leave=False):
        try:
            index = index_frames(path)
            read_frames(path, [0], index)
            found.videos.append((path, label, index))
        except BrokenVideo as error:
            found.broken[path] = str(error)
    if not found.videos:
        raise ValueError(
            f"None of the {len(files)} video files below {root / split} can be read. Files are expected in "
            f"{root / split}/<class>/, with one of the endings {', '.join(sorted(SUFFIXES))}. "
            f"{next(iter(found.broken.values()), '')}"
        )
    return found


class VideoFolder(Dataset):
    """Clips of the videos of a split.

    Args:
        videos: The videos, as :func:`scan` finds them.
        sample: Chooses the frames of a clip, from the number of frames of the video.
        transform: Prepares the frames, uint8 ``(T, 3, H', W')``.

    Returns:
        By index, ``{"clips": (T, 3, H, W), "labels": int}``. The label is -100, which losses ignore, if the video has
        become unreadable since the scan.
    """

    def __init__(
        self,
        videos: list[tuple[Path, int, FrameIndex]],
        sample: Callable[[int], list[int]],
        transform: Callable[[Tensor], Tensor],
    ) -> None:
        self.videos = videos
        self.sample = sample
        self.transform = transform

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, i: int) -> dict[str, Any]:
        path, label, index = self.videos[i]
        indices = self.sample(len(index))
        try:
            frames = read_frames(path, indices, index)
        except BrokenVideo:
            frames, label = torch.zeros(len(indices), 3, 64, 64, dtype=torch.uint8), -100
        return {"clips": self.transform(frames), "labels": label}
