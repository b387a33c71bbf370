"""Read the split files of UCF101: ``trainlist01.txt`` and ``testlist01.txt``, and the classes in ``classInd.txt``."""

from __future__ import annotations

import re
from pathlib import Path

from peft_aim.video.data.listing.contents import TEST, Contents, Row
from peft_aim.video.data.listing.files import Files, nfc
from peft_aim.video.data.listing.text import data_lines, read_text

NAME = re.compile(r"(train|test)list(\d+)\.txt", re.IGNORECASE)
SPLITS = {"train": ("train",), "test": TEST}
LINE = re.compile(r"(?:.*/)?(?P<folder>[^/]+)/(?P<file>[^/]+?)(?:\s+(?P<index>\d+))?")


def read_ucf101(source: Path, text: str, files: Files) -> Contents | None:
    """Read a split file; None if the file is none.

    Lines are ``class/file.avi`` and, in the train list, the index of the class from 1. The test list is the val split,
    too, also that of the train list beside it.

    Raises:
        ValueError: If the class of a video is not one of those in ``classInd.txt``.
    """
    index = source.with_name("classInd.txt")
    lines = [(number, line, LINE.fullmatch(line)) for number, line in data_lines(text)]
    name = NAME.fullmatch(source.name)
    if not (name or (index.is_file() and source != index)) or not all(m for *_, m in lines):
        return None
    classes = _classes(index) if index.is_file() else None
    splits, rows = SPLITS[name[1].lower()] if name else (), []
    for number, line, match in lines:
        label = match["folder"] if classes is None else _class(match, classes, f"Line {number} of {source}", index)
        rows.append(Row((line.removesuffix(match["index"] or "").strip(), match["file"]), label, splits))
    test = source.with_name(source.name.replace("trainlist", "testlist"))
    beside = dict.fromkeys(TEST, test) if test != source and test.is_file() else {}
    return Contents(rows, f"UCF101's split file{f', classes of {index.name}' if classes else ''}", classes, beside)


def _classes(index: Path) -> list[str]:
    """Return the class names in the order of their indices."""
    found = {}
    for number, line in data_lines(read_text(index)):
        key, _, name = line.partition(" ")
        if not (key.isdecimal() and name.strip()):
            raise ValueError(f"Line {number} of {index} is {line!r}. Write each line as: index class, as in UCF101.")
        found[int(key)] = nfc(name.strip())
    if sorted(found) != [*range(1, len(found) + 1)]:
        raise ValueError(f"{index} has the indices {sorted(found)}. Number the classes from 1, as in UCF101.")
    return [found[i] for i in sorted(found)]


def _class(match: re.Match, classes: list[str], where: str, index: Path) -> str:
    """Return the class of a video: its folder, which is right in lists that count from 0, too, else by its index."""
    if nfc(match["folder"]) in classes:
        return match["folder"]
    number = int(match["index"] or 0)
    if not 1 <= number <= len(classes):
        raise ValueError(
            f"{where} is {match[0]!r}: neither {match['folder']!r} nor {number} is a class of {index}, which has "
            f"{len(classes)}. Correct the line or {index.name}."
        )
    return classes[number - 1]
