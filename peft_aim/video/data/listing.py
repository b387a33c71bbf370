"""Find videos and their classes in folders, lists and tables."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif"}
PATH_COLUMNS = ("path", "video", "file", "filename", "video_path")
LABEL_COLUMNS = ("label", "class", "action", "category")


@dataclass(frozen=True)
class Labeled:
    """A video file and the name of its class, or the index of its class as a string of digits."""

    path: Path
    label: str


def find_videos(source: str | Path, split: str | None = None, root: str | Path | None = None) -> list[Labeled]:
    """Find the videos of a split.

    Args:
        source: A folder ``source/<split>/<class>/*``; a list with lines ``path label``, like those of Kinetics and
            Something-Something (separated by a tab, labels may contain spaces); or a table (.csv) with columns for
            path, label and, optionally, split.
        split: Split of a folder, or of a table that has a column "split"; a list is used as a whole.
        root: Folder that the paths in a list or table are relative to; None uses the folder of the file.

    Returns:
        The videos, sorted by name or in the order of the file. They are not opened.

    Raises:
        ValueError: If there are no videos, or a line cannot be parsed.
    """
    source = Path(source)
    if not source.exists() or source.suffix.lower() in SUFFIXES:
        what = "is a video file" if source.exists() else "does not exist"
        raise ValueError(f"{source} {what}. Give a folder of videos, or a list or table of them.")
    found = (
        _of_folder(source, split or "") if source.is_dir() else _of_file(source, split, Path(root or source.parent))
    )
    if not found:
        raise ValueError(
            f"No videos found in {source}{f', split {split!r}' if split else ''}. Check the path and the split."
        )
    return found


def has_split(source: str | Path, split: str) -> bool:
    """Whether a folder or table has a split; a list has none."""
    source = Path(source)
    if source.is_dir():
        return (source / split).is_dir()
    rows = _table(source) if source.suffix.lower() == ".csv" else []
    return any((row.get("split") or "").strip() == split for _, row in rows)


def class_names(videos: list[Labeled], names: list[str] | None = None, by_name: bool = False) -> list[str]:
    """Return the names of the classes, in the order of their indices.

    Args:
        videos: The training videos.
        names: Class names, for videos labeled by index; None derives them from the labels.
        by_name: Whether labels are names even if they look like indices, such as folders "1" and "2".

    Raises:
        ValueError: If there is only one class, or a label is not one of the names.

    Example:
        >>> class_names([Labeled(Path("a.mp4"), "walk"), Labeled(Path("b.mp4"), "run")])
        ['run', 'walk']
        >>> class_names([Labeled(Path("a.mp4"), "2"), Labeled(Path("b.mp4"), "0")])
        ['0', '1', '2']
    """
    if names is None:
        labels = {video.label for video in videos}
        numbered = not by_name and all(label.isdecimal() and str(int(label)) == label for label in labels)
        names = [str(i) for i in range(max(map(int, labels)) + 1)] if numbered else sorted(labels)
    if len(names) == 1:
        raise ValueError(f"There is only one class, {names[0]!r}. Give videos of at least two.")
    indexed(videos, names)
    return names


def by_index(videos: list[Labeled], classes: list[str]) -> bool:
    """Whether videos are labeled by the index of their class, not by its name.

    Example:
        >>> by_index([Labeled(Path("a.mp4"), "1")], ["run", "walk"])
        True
    """
    return any(video.label not in classes for video in videos) and all(video.label.isdecimal() for video in videos)


def indexed(videos: list[Labeled], classes: list[str]) -> list[tuple[Path, int]]:
    """Return the videos with the indices of their classes.

    Raises:
        ValueError: If a label is not one of the classes.
    """
    index = {str(i): i for i in range(len(classes))} | {name: i for i, name in enumerate(classes)}
    unknown = sorted({video.label for video in videos} - index.keys())
    if unknown:
        first = next(video for video in videos if video.label == unknown[0])
        shown = f"{classes[:8]}{f' and {len(classes) - 8} more' if len(classes) > 8 else ''}"
        raise ValueError(
            f"{first.path} has the label {unknown[0]!r}, which is not one of the classes {shown}. Correct the label."
        )
    return [(video.path, index[video.label]) for video in videos]


def read_names(path: str | Path) -> list[str]:
    """Read class names, one per line, in the order of their indices.

    Raises:
        ValueError: If the file does not exist.
    """
    if not Path(path).is_file():
        raise ValueError(f"The file of class names {path} does not exist. Give a text file with one name per line.")
    return [line.strip() for line in _text(Path(path)).splitlines() if line.strip()]


def _of_folder(folder: Path, split: str) -> list[Labeled]:
    classes = sorted(path for path in (folder / split).glob("[!.]*") if path.is_dir())
    if not classes:
        raise ValueError(
            f"{folder} has no folders {split}/<class>. Arrange the videos as {folder / split}/<class>/*.mp4."
        )
    return [
        Labeled(path, folder.name)
        for folder in classes
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]


def _of_file(source: Path, split: str | None, root: Path) -> list[Labeled]:
    if source.suffix.lower() == ".csv":
        return _of_table(source, split, root)
    found = []
    for number, line in enumerate(_text(source).splitlines(), 1):
        if line.strip():
            parts = line.rsplit("\t" if "\t" in line else None, maxsplit=1)
            if len(parts) < 2:
                raise ValueError(f"Line {number} of {source} is {line!r}. Write each line as: path label.")
            found.append(Labeled(root / parts[0].strip(), parts[1].strip()))
    return found


def _of_table(source: Path, split: str | None, root: Path) -> list[Labeled]:
    rows = _table(source)
    columns = list(rows[0][1]) if rows else []
    path, label = (next((c for c in wanted if c in columns), None) for wanted in (PATH_COLUMNS, LABEL_COLUMNS))
    if path is None or label is None:
        raise ValueError(
            f"{source} has the columns {columns}. Name one column {' or '.join(PATH_COLUMNS)}, and another one "
            f"{' or '.join(LABEL_COLUMNS)}."
        )
    found = []
    for number, row in rows:
        if not (row[path] and row[label]):
            raise ValueError(f"Line {number} of {source} has no {path} or no {label}: {row}. Fill in both.")
        if split is None or row.get("split", split).strip() == split:
            found.append(Labeled(root / row[path].strip(), row[label].strip()))
    return found


def _table(source: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the line number of each row of a table, and its cells by column name; the first line is the header."""
    reader = csv.DictReader(io.StringIO(_text(source)), skipinitialspace=True)
    reader.fieldnames = [(name or "").strip().lower() for name in reader.fieldnames or []]
    return [(reader.line_num, row) for row in reader]


def _text(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not valid UTF-8: {error}. Save it as UTF-8.") from None
