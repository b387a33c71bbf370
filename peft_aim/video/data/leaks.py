"""Find videos that are given twice, by their content: in both splits, in one split, or with two labels."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from peft_aim.video.data.listing import Sample, image_names, images_in

Content = tuple[Hashable, ...]  # what is known of a video's bytes

BLOCK = 64 * 1024  # bytes read at the beginning and at the end of a file


def notes_on_leaks(train: Sequence[Sample], val: Sequence[Sample], name: str = "val") -> list[str]:
    """Return notes on videos that are given twice; files that do not exist are left to others.

    Two videos are the same if their bytes are, whatever their names; folders of frames are if the names and bytes of
    their images are. Segments of a video are in both splits if they overlap, and given twice if their times are the
    same.

    Args:
        train: Training videos and their classes.
        val: Videos to evaluate on and their classes.
        name: Name of the split to evaluate on.
    """
    contents = _contents({video.path for videos in (train, val) for video in videos})
    trained: dict[Content, list[Sample]] = {}
    for video in train:
        if video.path in contents:
            trained.setdefault(contents[video.path], []).append(video)
    both, beside = [], []
    for video in val:
        same = trained.get(contents.get(video.path), [])
        overlapping = next((other for other in same if other.overlaps(video)), None)
        if overlapping:
            both.append((video, overlapping))
        elif same:
            beside.append((video, same[0]))
    notes = []
    if both:
        notes.append(
            f"{_some(both, val, name)} also in the train split (by content), {_pair(*both[0])} for example: the "
            "results are too good. Leave them out of one split."
        )
    if beside:
        are = "is of a video" if len(beside) == 1 else "are of videos"
        notes.append(
            f"{len(beside)} of the {len(val)} {name} segments {are} with other segments in the train split, "
            f"{_pair(*beside[0])} for example: the results may be too good for other videos. Split by video."
        )
    return [*notes, *_notes_on_copies(train, contents, "train"), *_notes_on_copies(val, contents, name)]


def _notes_on_copies(videos: Sequence[Sample], contents: dict[Path, Content], split: str) -> list[str]:
    first: dict[Hashable, Sample] = {}
    copies, contradictions = [], []
    for video in videos:
        content = contents.get(video.path)
        key = (content, video.start, video.end)
        if original := first.get(key):
            found = copies if video.label == original.label else contradictions
            found.append((original, video, original.label, video.label))
        elif content is not None:
            first[key] = video
    notes = []
    if copies:
        notes.append(
            f"{_some(copies, videos, split)} given twice (by content), {_pair(*copies[0][:2])} for example. Leave out "
            "the copies."
        )
    if contradictions:
        *paths, known, label = contradictions[0]
        notes.append(
            f"{_some(contradictions, videos, split)} given twice with different labels (by content), {_pair(*paths)} "
            f"as {str(known)!r} and {str(label)!r} for example. Correct the labels."
        )
    return notes


def _some(some: Sequence, videos: Sequence[Sample], split: str) -> str:
    return f"{len(some)} of the {len(videos)} {split} videos {'is' if len(some) == 1 else 'are'}"


def _pair(first: Sample, second: Sample) -> str:
    """Return two videos, their paths relative to the folder that both are in."""
    if str(first) == str(second):
        return f"{first}"
    common = os.path.commonpath([video.path.absolute().parent for video in (first, second)])
    return " and ".join(str(replace(video, path=os.path.relpath(video.path, common))) for video in (first, second))


def _contents(paths: Iterable[Path]) -> dict[Path, Content]:
    """Return what identifies the contents of files and folders of frames, without broken and missing ones.

    Of those that are alike by a cheap look, a more expensive one is taken.
    """
    videos, contents = {}, {}
    for path in paths:
        with suppress(OSError):
            if any(size := (video := _Bytes(path)).size()):
                videos[path], contents[path] = video, (size,)
    for look in (_Bytes.ends_hash, _Bytes.whole_hash):
        often = Counter(contents.values())
        for path in [path for path, content in contents.items() if often[content] > 1]:
            try:
                contents[path] += (look(videos[path]),)
            except OSError:
                del contents[path]
    return contents


class _Bytes:
    """The bytes of a file or of the images in a folder, which is listed once unless all of them are read."""

    __slots__ = ("ends", "names", "path")

    def __init__(self, path: Path) -> None:
        names = image_names(path) if path.is_dir() else None
        self.path, self.names = path, hash(tuple(names)) if names else None
        self.ends = (path,) if names is None else (path / names[0], path / names[-1]) if names else ()

    def size(self) -> tuple[int | None, ...]:
        """Return the size of the file, or what the names of the images are and the sizes of the first and the last."""
        return (*(end.stat().st_size for end in self.ends), self.names)

    def ends_hash(self) -> str:
        """Return the hash of the first and last bytes of the file, or of the first and the last image."""
        found = hashlib.sha256()
        for end in self.ends:
            with end.open("rb") as opened:
                found.update(opened.read(BLOCK))
                opened.seek(max(BLOCK, end.stat().st_size - BLOCK))
                found.update(opened.read())
        return found.hexdigest()

    def whole_hash(self) -> str:
        """Return the hash of all bytes."""
        found = hashlib.sha256()
        for file in self.ends if self.names is None else images_in(self.path):
            found.update(f"{file.stat().st_size} ".encode())
            with file.open("rb") as opened:
                for block in iter(lambda: opened.read(BLOCK), b""):
                    found.update(block)
        return found.hexdigest()
