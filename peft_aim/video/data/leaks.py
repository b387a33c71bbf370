"""Find videos that are given twice, by their content: in both splits, in one split, or with two labels."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from peft_aim.video.data.listing import images_in

Videos = Sequence[tuple[Path, Hashable]]

BLOCK = 64 * 1024  # bytes read at the beginning and at the end of a file


def notes_on_leaks(train: Videos, val: Videos, name: str = "val") -> list[str]:
    """Return notes on videos that are given twice; files that do not exist are left to others.

    Two videos are the same if their sizes and their first and last 64 KiB are, whatever their names; folders of frames
    are if the names and sizes of their images are, and the first and the last image.

    Args:
        train: Training videos and their classes.
        val: Videos to evaluate on and their classes.
        name: Name of the split to evaluate on.
    """
    contents = _contents({path for videos in (train, val) for path, _ in videos})
    notes, trained = [], {contents[path]: path for path, _ in reversed(train) if path in contents}
    both = [(path, trained[contents[path]]) for path, _ in val if contents.get(path) in trained]
    if both:
        notes.append(
            f"{_some(both, val, name)} also in the train split (by content), {_pair(*both[0])} for example: the "
            "results are too good. Leave them out of one split."
        )
    return [*notes, *_notes_on_copies(train, contents, "train"), *_notes_on_copies(val, contents, name)]


def _notes_on_copies(videos: Videos, contents: dict[Path, str], split: str) -> list[str]:
    first: dict[str, tuple[Path, Hashable]] = {}
    copies, contradictions = [], []
    for path, label in videos:
        content = contents.get(path)
        if content in first:
            original, known = first[content]
            (copies if label == known else contradictions).append((original, path, known, label))
        elif content is not None:
            first[content] = (path, label)
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


def _some(some: Sequence, videos: Videos, split: str) -> str:
    return f"{len(some)} of the {len(videos)} {split} videos {'is' if len(some) == 1 else 'are'}"


def _pair(first: Path, second: Path) -> str:
    """Return two paths, relative to the folder that both are in."""
    if first == second:
        return f"{first}"
    common = os.path.commonpath([first.absolute().parent, second.absolute().parent])
    return " and ".join(os.path.relpath(path, common) for path in (first, second))


def _contents(paths: Iterable[Path]) -> dict[Path, str]:
    """Return what identifies the contents of files and folders of frames, without broken and missing ones.

    Only those of equal size need to be read.
    """
    sizes, contents = defaultdict(list), {}
    for path in sorted(paths):
        with suppress(OSError):
            if any(size := _size(path)):
                sizes[size].append(path)
    for size, group in sizes.items():
        for path in group:
            with suppress(OSError):
                contents[path] = f"{size}" if len(group) == 1 else f"{size} {_digest(path)}"
    return contents


def _size(path: Path) -> tuple[int, ...]:
    """Return the size of a file, or the number of images in a folder and the sizes of the first and the last."""
    if not path.is_dir():
        return (path.stat().st_size,)
    images = images_in(path)
    return (len(images), *(image.stat().st_size for image in images[:: max(1, len(images) - 1)]))


def _digest(path: Path) -> str:
    """Return the hash of the first and last bytes of a file, or of the names, sizes and ends of a folder's images."""
    found, files = hashlib.sha256(), [path]
    if path.is_dir():
        files = images_in(path)
        found.update(repr([(image.name, image.stat().st_size) for image in files]).encode())
    for file in (files[0], files[-1]):
        with file.open("rb") as opened:
            found.update(opened.read(BLOCK))
            opened.seek(max(0, file.stat().st_size - BLOCK))
            found.update(opened.read())
    return found.hexdigest()
