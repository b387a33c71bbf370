"""Finds videos and their classes: in folders, in lists and in tables."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif"}
PATH_COLUMNS = ("path", "video", "file", "filename", "video_path")
LABEL_COLUMNS = ("label", "class", "action", "category")


@dataclass(frozen=True)
class Labelled:
    """A video file with the name of its class, or its index as a string of digits."""

    path: Path
    label: str


def find_videos(source: str | Path, split: str | None = None, root: str | Path | None = None) -> list[Labelled]:
    """Find the videos of a split.

    Args:
        source: A folder ``source/<split>/<class>/*``; a list with lines ``path label``, as of Kinetics and
            Something-Something (with a tab between them, labels may have spaces); or a table (.csv) with columns for
            path, label and perhaps split.
        split: Which part of a folder, or of a table if that has a column "split"; a list is taken as a whole.
        root: Where the paths in a list or table begin, by default the folder it is in.

    Returns:
        The videos, in the order of their names or of the list. Whether they can be read is not looked at.

    Raises:
        ValueError: If there are none, or a line is not as it should be.
    """
    source = Path(source)
    if not source.exists() or source.suffix.lower() in SUFFIXES:
        what = "is a video" if source.exists() else "does not exist"
        raise ValueError(f"{source} {what}. Give a folder of videos, a list or a table of them.")
    found = (
        _of_folder(source, split or "") if source.is_dir() else _of_file(source, split, Path(root or source.parent))
    )
    if not found:
        raise ValueError(f"There is no video in {source}{f', split {split!r}' if split else ''}.")
    return found


def has_split(source: str | Path, split: str) -> bool:
    """Whether a folder or table has a split of a name; a list has none."""
    source = Path(source)
    if source.is_dir():
        return (source / split).is_dir()
    rows = _table(source) if source.suffix.lower() == ".csv" else []
    return any((row.get("split") or "").strip() == split for _, row in rows)


def class_names(videos: list[Labelled], names: list[str] | None = None, by_name: bool = False) -> list[str]:
    """Return the names of the classes, in the order of their indices.

    Args:
        videos: The videos to train on.
        names: The names, if they are known, for videos that are labelled by index.
        by_name: Labels are names, though they may look like indices, as folders "1" and "2" do.

    Raises:
        ValueError: If there is only one class, or a label is not among the names.

    Example:
        >>> class_names([Labelled(Path("a.mp4"), "walk"), Labelled(Path("b.mp4"), "run")])
        ['run', 'walk']
        >>> class_names([Labelled(Path("a.mp4"), "2"), Labelled(Path("b.mp4"), "0")])
        ['0', '1', '2']
    """
    if names is None:
        labels = {video.label for video in videos}
        numbered = not by_name and all(label.isdecimal() and str(int(label)) == label for label in labels)
        names = [str(i) for i in range(max(map(int, labels)) + 1)] if numbered else sorted(labels)
    if len(names) == 1:
        raise ValueError(f"There is one class only, {names[0]!r}: nothing to tell apart.")
    indexed(videos, names)
    return names


def by_index(videos: list[Labelled], classes: list[str]) -> bool:
    """Whether videos are labelled by the index of their class and not by its name.

    Example:
        >>> by_index([Labelled(Path("a.mp4"), "1")], ["run", "walk"])
        True
    """
    return any(video.label not in classes for video in videos) and all(video.label.isdecimal() for video in videos)


def indexed(videos: list[Labelled], classes: list[str]) -> list[tuple[Path, int]]:
    """Return the videos with the indices of their classes.

    Raises:
        ValueError: If a video has a class that is not among these.
    """
    index = {str(i): i for i in range(len(classes))} | {name: i for i, name in enumerate(classes)}
    unknown = sorted({video.label for video in videos} - index.keys())
    if unknown:
        first = next(video for video in videos if video.label == unknown[0])
        shown = f"{classes[:8]}{f' and {len(classes) - 8} more' if len(classes) > 8 else ''}"
        raise ValueError(f"{first.path} is of the class {unknown[0]!r}, which is none of {shown}.")
    return [(video.path, index[video.label]) for video in videos]


def read_names(path: str | Path) -> list[str]:
    """Read names of classes, one in each line, in the order of their indices.

    Raises:
        ValueError: If there is no such file.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path} with the names of the classes, one in each line.")
    return [line.strip() for line in _text(Path(path)).splitlines() if line.strip()]


def _of_folder(folder: Path, split: str) -> list[Labelled]:
    classes = sorted(path for path in (folder / split).glob("[!.]*") if path.is_dir())
    if not classes:
        raise ValueError(
            f"{folder} has no folders {split}/<class> in it. Videos are expected as {folder / split}/<class>/*.mp4."
        )
    return [
        Labelled(path, folder.name)
        for folder in classes
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]


def _of_file(source: Path, split: str | None, root: Path) -> list[Labelled]:
    if source.suffix.lower() == ".csv":
        return _of_table(source, split, root)
    found = []
    for number, line in enumerate(_text(source).splitlines(), 1):
        if line.strip():
            parts = line.rsplit("\t" if "\t" in line else None, maxsplit=1)
            if len(parts) < 2:
                raise ValueError(f"Line {number} of {source} is {line!r}. Each is expected to be: path label.")
            found.append(Labelled(root / parts[0].strip(), parts[1].strip()))
    return found


def _of_table(source: Path, split: str | None, root: Path) -> list[Labelled]:
    rows = _table(source)
    columns = list(rows[0][1]) if rows else []
    path, label = (next((c for c in wanted if c in columns), None) for wanted in (PATH_COLUMNS, LABEL_COLUMNS))
    if path is None or label is None:
        raise ValueError(
            f"{source} has the columns {columns}. One has to be called {' or '.join(PATH_COLUMNS)}, and one "
            f"{' or '.join(LABEL_COLUMNS)}."
        )
    found = []
    for number, row in rows:
        if not (row[path] and row[label]):
            raise ValueError(f"Line {number} of {source} lacks its {path} or {label}: {row}.")
        if split is None or row.get("split", split).strip() == split:
            found.append(Labelled(root / row[path].strip(), row[label].strip()))
    return found


def _table(source: Path) -> list[tuple[int, dict[str, str]]]:
    """Read a table's rows, with their numbers of lines, by the names of columns in its first line."""
    reader = csv.DictReader(io.StringIO(_text(source)), skipinitialspace=True)
    reader.fieldnames = [(name or "").strip().lower() for name in reader.fieldnames or []]
    return [(reader.line_num, row) for row in reader]


def _text(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is no list or table in UTF-8: {error}. Save it in UTF-8.") from None
