"""Read the split files of HMDB51: one ``<class>_test_split1.txt`` for each class."""

from __future__ import annotations

import re
from pathlib import Path

from peft_aim.video.data.listing.contents import TEST, Contents, Row
from peft_aim.video.data.listing.files import Files
from peft_aim.video.data.listing.text import data_lines, read_text

NAME = re.compile(r"(?P<label>.+)_test_split(?P<number>\d+)\.txt", re.IGNORECASE)
SPLITS = {"1": ("train",), "2": TEST, "0": ()}


def split_1_in(folder: Path) -> Path | None:
    """Return a file of split 1 in a folder, which stands for all classes; None if there is none."""
    return next(iter(sorted(folder.glob("[!.]*_test_split1.txt"))), None)


def read_hmdb51(source: Path, text: str, files: Files) -> Contents | None:
    """Read a split from the files of all classes beside this one; None if the file is none of them.

    Lines are ``file.avi 1`` for training videos, 2 for test videos, which are also the val split, and 0 for unused
    ones.

    Raises:
        ValueError: If a line is not of this form.
    """
    name = NAME.fullmatch(source.name)
    if name is None:
        return None
    rows = []
    for path in sorted(source.parent.glob(f"[!.]*_test_split{name['number']}.txt")):
        label = NAME.fullmatch(path.name)["label"]
        for number, line in data_lines(read_text(path)):
            video, _, use = line.rpartition(" ")
            if not video or use not in SPLITS:
                raise ValueError(
                    f"Line {number} of {path} is {line!r}. Write each line as: file 1 (train), 2 (test) or 0 (unused)."
                )
            if use != "0":
                rows.append(Row((video.strip(),), label, SPLITS[use]))
    return Contents(rows, f"HMDB51's split {name['number']}")
