"""Find the videos of a split in whatever form people have them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

from peft_aim.video.data.listing.contents import Contents, Listing, counted, split_label, split_name
from peft_aim.video.data.listing.files import Files, is_video, nfc
from peft_aim.video.data.listing.folders import read_folder, split_folder
from peft_aim.video.data.listing.hmdb51 import read_hmdb51, split_1_in
from peft_aim.video.data.listing.json_lists import read_json
from peft_aim.video.data.listing.lists import read_list
from peft_aim.video.data.listing.sample import Sample
from peft_aim.video.data.listing.tables import read_table
from peft_aim.video.data.listing.text import is_comment, read_text
from peft_aim.video.data.listing.ucf101 import read_ucf101

# The first that does not return None reads the file; the last reads all.
READERS: tuple[Callable[[Path, str, Files], Contents | None], ...] = (
    read_hmdb51,
    read_ucf101,
    read_json,
    read_table,
    read_list,
)


def find_videos(source: str | Path, split: str | None = None, root: str | Path | None = None) -> list[Sample]:
    """Find the videos of a split.

    Args:
        source: One of these forms, recognized by the contents:

            - a folder ``source/<split>/<class>/*`` of videos and of folders of images (a folder of frames is a video),
            - a list with lines ``path label``, or ``folder frames label`` for folders of frames,
            - a table with columns for path, label and, optionally, split, start and end (of a segment, in seconds),
              such as those of Kinetics; the separator is a comma, semicolon, tab or ``|``, and without a header the
              columns are path and label,
            - UCF101's ``trainlist01.txt``, with ``classInd.txt`` and ``testlist01.txt`` beside it,
            - the folder of HMDB51's ``<class>_test_split1.txt``, or one of these files,
            - Something-Something's JSON, objects in a list or one per line, or a mapping ``{"path": "label"}``.
        split: Split of a folder, of a table that has a column for it, or of a data set, such as "val" or, which is the
            same, "validation"; a list is used as a whole.
        root: Folder that the paths in a file are relative to; None uses the folder of the file. A path may be an id,
            the file name without suffix, and videos may be in folders named after the label, split or file.

    Returns:
        The videos, sorted by name or in the order of the file. They are not opened, and those of a file need not
            exist.

    Raises:
        ValueError: If there are no videos, or a line cannot be read.
    """
    return read_listing(source, split, root).videos


def read_listing(source: str | Path, split: str | None = None, root: str | Path | None = None) -> Listing:
    """Find the videos of a split, like :func:`find_videos`, and what was read and left out.

    Raises:
        ValueError: If there are no videos, or a line cannot be read.
    """
    return VideoSource(source, root).listing(split)


def has_split(source: str | Path, split: str, root: str | Path | None = None) -> bool:
    """Whether a folder, table or data set has a split; a list has none."""
    return VideoSource(source, root).has(split)


class VideoSource:
    """A folder or file of videos, which is read once, however many splits are asked for.

    Args:
        path: The folder or file, see :func:`find_videos`.
        root: Folder that the paths in a file are relative to; None uses the folder of the file.

    Raises:
        ValueError: If it does not exist, or is a video itself.
    """

    def __init__(self, path: str | Path, root: str | Path | None = None) -> None:
        self.path = Path(path)
        if not self.path.exists() or (self.path.is_file() and is_video(self.path)):
            what = "is a video file" if self.path.exists() else "does not exist"
            raise ValueError(f"{self.path} {what}. Give a folder of videos, or a list or table of them.")
        self._file = split_1_in(self.path) if self.path.is_dir() else self.path
        self._files = Files(Path(root or (self.path if self.path.is_dir() else self.path.parent)))

    @property
    def is_folder(self) -> bool:
        """Whether the videos are in class folders, whose names are the labels."""
        return self._file is None

    def has(self, split: str) -> bool:
        """Whether there is a split; a list has none."""
        if self.is_folder:
            return split_folder(self.path, split).is_dir()
        return split_name(split) in self._contents.splits

    def listing(self, split: str | None = None) -> Listing:
        """Find the videos of a split; a list is used as a whole.

        Raises:
            ValueError: If there are no videos, or a line cannot be read.
        """
        if self.is_folder:
            listing, splits = read_folder(self.path, split or ""), []
        elif split and (beside := self._contents.beside.get(split_name(split))):
            return VideoSource(beside, self._files.root).listing()
        else:
            listing, splits = self._found(split and split_name(split)), self._contents.splits
        if not listing.videos:
            hints = [f"Left out: {', '.join(listing.left_out)}."] if listing.left_out else []
            hints += [f"It has the splits {', '.join(splits)}."] if splits else []
            raise ValueError(
                f"No videos found in {self.path}{f', split {split!r}' if split else ''}. "
                f"{' '.join([*hints, 'Check the path and the split.'])}"
            )
        return listing

    @cached_property
    def _contents(self) -> Contents:
        text = read_text(self._file)
        contents = next(c for read in READERS if (c := read(self._file, text, self._files)) is not None)
        return replace(contents, comments=sum(is_comment(line.strip()) for line in text.split("\n")))

    def _found(self, split: str | None) -> Listing:
        """Find the files that rows name."""
        contents, stem, videos, missing = self._contents, self.path.stem, [], []
        for row in contents.rows:
            if split is None or not row.splits or split in row.splits:
                folders, label = _folders(row.label, row.folders, stem), split_label(nfc(row.label))
                if row.trimmed and (path := self._files.find(_spellings(row.trimmed), folders)):
                    videos.append(Sample(path, label))
                    continue
                path = self._files.find(_spellings(row.names), folders)
                if path is None:
                    path = self._files.root / (*row.trimmed, *row.names)[0]
                    missing.append(path)
                videos.append(Sample(path, label, *row.span))
        left_out = (counted(contents.comments, "comment"),) if contents.comments else ()
        return Listing(videos, self.path, contents.form, contents.classes, left_out, tuple(missing))


def _spellings(names: tuple[str, ...]) -> list[str]:
    """Return the names of a video, also with the slashes of Windows and without a slash that means the root."""
    slashed = [name.replace("\\", "/") for name in names]
    return [*dict.fromkeys((*names, *slashed, *(name.lstrip("/") for name in slashed)))]


@lru_cache(maxsize=4096)  # rows by the hundred thousand share some hundred labels
def _folders(label: str, folders: tuple[str, ...], stem: str) -> tuple[str, ...]:
    """Return where a video may be: beside the others, or in a folder of its label, its split or the file's name."""
    labels = dict.fromkeys(("", label, label.replace(" ", "_")))
    return tuple(os.path.join(folder, name) for folder in dict.fromkeys(("", *folders, stem)) for name in labels)
