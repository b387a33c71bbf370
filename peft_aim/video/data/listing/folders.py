"""Find videos in folders ``source/<split>/<class>``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from peft_aim.video.data.listing.contents import Listing, counted, encodable, shown, split_name
from peft_aim.video.data.listing.files import are_frames, is_ignored, is_video_file, nfc
from peft_aim.video.data.listing.sample import Sample


def split_folder(source: Path, split: str) -> Path:
    """Return the folder of a split, "val" or a synonym such as "Validation", whether it exists or not."""
    if (source / split).is_dir():
        return source / split
    same = (path for path in _content(source) if path.is_dir() and split_name(path.name) == split_name(split))
    return next(same, source / split)


def read_folder(source: Path, split: str) -> Listing:
    """Find the videos in the class folders of a split; subfolders and links are followed.

    A subfolder with nothing but images is a video, too.

    Raises:
        ValueError: If there are no class folders.
    """
    folder = split_folder(source, split) if split else source
    content = _content(folder) if folder.is_dir() else []
    classes = [path for path in content if path.is_dir()]
    if not classes:
        raise ValueError(
            f"{source} has no folders {split}/<class>. Arrange the videos as {source / split}/<class>/*.mp4."
        )
    walk, videos, empty = _Walk(), [], []
    for path in classes:
        label = nfc(encodable(path.name, f"{source / split}"))
        found = sorted(walk.videos(path))
        videos += [Sample(video, label) for video in found]
        empty += [] if found else [path.name]
    outside = [path for path in content if path.is_file()]
    return Listing(videos, source, walk.form, left_out=tuple(_left_out(walk.others, empty, outside)))


def videos_below(folder: Path) -> list[Path]:
    """Return the videos in a folder and its subfolders, sorted; links are followed.

    A subfolder with nothing but images is a video, too.

    Raises:
        ValueError: If there are none.
    """
    walk = _Walk()
    found = sorted(walk.videos(folder))
    if not found:
        left_out = [f"Left out: {text}. " for text in _left_out(walk.others, [], [])]
        raise ValueError(f"No videos found in {folder} and its subfolders. {''.join(left_out)}Check the path.")
    return found


def is_folder_of_frames(path: Path) -> bool:
    """Whether a path is a folder with nothing but images, which is a video."""
    content = _content(path) if path.is_dir() else []
    return not any(other.is_dir() for other in content) and are_frames(content)


@dataclass
class _Walk:
    """A walk through class folders, which counts what it does not take."""

    others: Counter = field(default_factory=Counter)
    folders: int = 0  # folders of frames

    def videos(self, folder: Path) -> Iterator[Path]:
        """Iterate over the videos of a class."""
        starts = (folder, folder.parent / "x")  # the class folder may be a link itself
        above = {str(path) for start in starts for path in Path(os.path.realpath(start)).parents}
        yield from self._below(folder, frames=False, visited=above)

    def _below(self, folder: Path, frames: bool, visited: set[str]) -> Iterator[Path]:
        """Iterate over the videos below a folder; with ``frames``, it may be a video itself."""
        if (real := os.path.realpath(folder)) in visited:  # a link that leads back up
            return
        visited.add(real)
        content = _content(folder)
        folders = {path for path in content if path.is_dir()}
        if frames and not folders and are_frames(content):
            self.folders += 1
            yield folder
            return
        for path in content:
            if path in folders:
                yield from self._below(path, frames=True, visited=visited)
            elif is_video_file(path):
                yield path
            else:
                self.others[path.suffix.lower() or path.name] += 1

    @property
    def form(self) -> str:
        """How the videos were found."""
        return "a folder for each class" + f", {counted(self.folders, 'folder')} of frames" * bool(self.folders)


def _content(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not is_ignored(path))


def _left_out(others: Counter, empty: list[str], outside: list[Path]) -> Iterator[str]:
    if others:
        yield f"{counted(sum(others.values()), 'file')} of other kinds ({shown(sorted(others))})"
    if empty:
        yield f"{counted(empty, 'class folder')} without videos ({shown(empty)})"
    if outside:
        yield f"{counted(outside, 'file')} outside of the class folders ({shown([path.name for path in outside])})"
