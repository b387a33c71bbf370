"""Names that people give the columns of a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from peft_aim.video.data.listing.contents import is_split
from peft_aim.video.data.listing.files import is_video
from peft_aim.video.data.listing.spans import SPANS

# The first that a table has counts.
PATHS = (
    *("path", "video_path", "file_path", "filepath", "clip_path", "video", "file", "filename", "file_name"),
    *("video_name", "clip_name", "clip", "video_id", "clip_id", "id", "youtube_id"),
)
LABELS = (
    *("label", "class", "action", "category", "tag", "activity"),
    *("label_name", "class_name", "classname", "action_name"),
    *("label_id", "class_id", "class_index", "target"),
)
SPLITS = ("split", "set", "subset", "partition")


def is_header(cells: Sequence[str]) -> bool:
    """Whether these are names of columns rather than a path and a label.

    Example:
        >>> is_header(["Video Name", "tag"]), is_header(["a.mp4", "action"])
        (True, False)
    """
    known = {named(cell) for cell in cells} & {*PATHS, *LABELS}
    return len(cells) > 1 and bool(known) and not any(is_video(cell) or cell.isdecimal() for cell in cells)


def chosen(
    columns: Collection[str], values: Callable[[str], Iterable[Any]], source: Path
) -> tuple[str, str, str | None]:
    """Return the columns of paths, labels and splits; the last may be None.

    Of several columns of labels, that of names counts rather than that of their indices. A column whose cells are all
    names of splits is that of splits, whatever it is called.

    Args:
        columns: Names of the columns.
        values: Function that returns the cells of a column.
        source: The file, for errors.

    Raises:
        ValueError: If there are no paths or no labels.
    """
    path = next((column for column in PATHS if column in columns), None)
    labels = [column for column in LABELS if column in columns]
    needed = (("paths", PATHS, path), ("labels", LABELS, labels))
    missing = [f"{what} ({', '.join(names[:3])}, ...)" for what, names, found in needed if not found]
    if missing:
        raise ValueError(
            f"{source} has no column of {' or of '.join(missing)}: it has {[*columns]}. Name one like this."
        )
    names = (column for column in labels if not all(str(cell).isdecimal() for cell in values(column)))
    label = next(names, labels[0]) if len(labels) > 1 else labels[0]
    others = [column for column in columns if column not in (path, label)]
    splits = (column for column in others if column in SPLITS or all(is_split(str(cell)) for cell in values(column)))
    return path, label, min(splits, key=lambda column: column not in SPLITS, default=None)


def named(column: str) -> str:
    """Return the name of a column in lower case, with underscores."""
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def is_list_header(line: str) -> bool:
    """Whether a line is the header of a list, "path label"."""
    columns = [named(word) for word in line.split()]
    return len(columns) == 2 and columns[0] in PATHS and columns[1] in LABELS


def is_header_with_spaces(line: str) -> bool:
    """Whether spaces separate the names of columns, which are others than in a list."""
    columns = [named(word) for word in line.split()]
    return len(columns) > 1 and {*columns} <= {*PATHS, *LABELS, *SPLITS, *chain(*SPANS)} and not is_list_header(line)
