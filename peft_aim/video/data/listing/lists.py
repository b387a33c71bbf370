"""Read lists with lines "path label", or "folder frames label" for folders of frames."""

from __future__ import annotations

import re
from pathlib import Path

from peft_aim.video.data.listing.columns import is_list_header
from peft_aim.video.data.listing.contents import Contents, Row, checked
from peft_aim.video.data.listing.files import SUFFIXES, Files, images_in
from peft_aim.video.data.listing.text import data_lines

# "my run.mp4 1": the path ends where a video's suffix does, so that both it and the label may contain spaces.
VIDEO_AND_LABEL = re.compile(rf"(.*(?:{'|'.join(map(re.escape, sorted(SUFFIXES)))}))\s+(\S.*)", re.IGNORECASE)


def read_list(source: Path, text: str, files: Files) -> Contents:
    """Read a list.

    Raises:
        ValueError: If a line is not a path and a label.
    """
    lines = list(data_lines(text))
    if lines and is_list_header(lines[0][1]):
        lines = lines[1:]
    elif len(lines) > 1 and _is_unknown_header(lines[0][1], lines[1][1], files):
        raise ValueError(
            f"Line {lines[0][0]} of {source} is {lines[0][1]!r}, which names no video, but the next line does. "
            "Write each line as: path label."
        )
    with_frames, rows = None, []
    for number, line in lines:
        where = f"Line {number} of {source}"
        path, label = _path_and_label(line, where)
        folder, _, count = path.rpartition(" ")
        if folder and count.isdecimal():
            if with_frames is None:
                with_frames = _is_number_of_frames(files.find([folder.strip()]), int(count))
            if with_frames:
                path = folder.strip()
            elif "\t" not in line:
                path = _with_a_number(path, line, where, files)
        rows.append(Row((path,), checked(label, where)))
    return Contents(rows, "lines 'folder frames label'" if with_frames else "lines 'path label'")


def _path_and_label(line: str, where: str) -> tuple[str, str]:
    if "\t" in line:
        return tuple(part.strip() for part in line.rsplit("\t", 1))
    video = VIDEO_AND_LABEL.fullmatch(line)
    parts = video.groups() if video else line.rsplit(maxsplit=1)
    if len(parts) < 2:
        raise ValueError(f"{where} is {line!r}. Write each line as: path label.")
    path, label = (part.strip() for part in parts)
    words = label.split()
    if len(words) > 1 and any(word.isdecimal() for word in words):
        raise _several(line, label, where)
    return path, label


def _is_unknown_header(first: str, second: str, files: Files) -> bool:
    """Whether the first line is a header, since only the second one names a video."""
    path = first.rsplit(maxsplit=1)[0]
    return bool(VIDEO_AND_LABEL.match(second)) and not VIDEO_AND_LABEL.match(first) and files.find([path]) is None


def _is_number_of_frames(folder: Path | None, count: int) -> bool:
    """Whether a folder has so many images; some lists count one less or more."""
    return folder is not None and folder.is_dir() and abs(len(images_in(folder)) - count) <= 1


def _with_a_number(path: str, line: str, where: str, files: Files) -> str:
    """Return a path that ends in a number, such as "run 1", if it exists."""
    if files.find([path]) is None:
        raise _several(line, f"{path.split()[-1]} {line.split()[-1]}", where)
    return path


def _several(line: str, label: str, where: str) -> ValueError:
    return ValueError(
        f"{where} is {line!r}, with {label!r} after the path. Write each line as: path label (or, for a folder with "
        "that number of images: folder frames label). Separate several labels by |, and put a tab before a label that "
        "contains numbers and spaces."
    )
