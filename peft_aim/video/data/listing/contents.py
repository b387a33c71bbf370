"""What a file of videos contains, whatever its form, and what is found on disk."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_aim.video.data.listing.files import is_video
from peft_aim.video.data.listing.sample import Sample
from peft_aim.video.data.listing.spans import Span

SYNONYMS = {
    "train": ("training",),
    "val": ("valid", "validate", "validation", "dev"),
    "test": ("testing",),
}
TEST = ("val", "test")  # splits of the test videos of data sets without another val split


@dataclass(slots=True)  # not frozen, which would take three times as long for rows by the hundred thousand
class Row:
    """A video as a file names it.

    Attributes:
        names: Paths or ids it may have; the first counts if none exists.
        label: Its label; several are separated by ``|``.
        splits: Splits it belongs to; empty if the file has no splits.
        folders: Folders it may be in, besides those named after the label and the file.
        span: Start and end of the segment in seconds; None is that of the video.
        trimmed: Names of files with nothing but the segment, which are looked for first.
    """

    names: tuple[str, ...]
    label: str
    splits: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    span: Span = (None, None)
    trimmed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """The contents of a file of videos.

    Attributes:
        rows: The videos.
        form: How the file was read, in words.
        classes: Class names in the order of their indices, if the file or one beside it gives them.
        beside: Files beside it with the videos of other splits.
        comments: Number of its lines that are comments.
    """

    rows: list[Row]
    form: str
    classes: list[str] | None = None
    beside: dict[str, Path] = field(default_factory=dict)
    comments: int = 0

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return sorted({split for row in self.rows for split in row.splits} | {*self.beside})


@dataclass(frozen=True)
class Listing:
    """The videos of a split, found on disk or as they are written.

    Attributes:
        videos: The videos.
        source: The folder or file they are listed in.
        form: How it was read, in words.
        classes: Class names in the order of their indices, if the source gives them.
        left_out: What was left out, in words.
        missing: Files that do not exist.
    """

    videos: list[Sample]
    source: Path
    form: str
    classes: list[str] | None = None
    left_out: tuple[str, ...] = ()
    missing: tuple[Path, ...] = ()

    def summary(self, split: str, labels: str = "class") -> str:
        """Return what was read and what was left out, in words.

        Args:
            split: Name of the split.
            labels: What the labels are.

        Example:
            >>> videos = [Sample(Path("a.mp4"), "run"), Sample(Path("b.mp4"), "walk")]
            >>> listing = Listing(videos, Path("all.csv"), "column 'tag' as label", left_out=("1 comment",))
            >>> print(listing.summary("train"))
            2 videos of 2 classes in train from all.csv (column 'tag' as label)
            Left out: 1 comment
        """
        videos = counted(self.videos, "video")
        if any(video.is_segment for video in self.videos):
            videos = f"{counted(self.videos, 'segment')} of {counted({video.path for video in self.videos}, 'video')}"
        texts = {text for video in self.videos for text in texts_of(video)}
        lines = [f"{videos} of {counted(texts, labels)} in {split} from {self.source.name} ({self.form})"]
        lines += [f"Left out: {', '.join(self.left_out)}"] if self.left_out else []
        if self.missing:
            hint = " Give the folder of the videos with --root." if len(self.missing) == len(self.videos) else ""
            lines += [f"Missing: {counted(self.missing, 'file')}, {self.missing[0]} for example.{hint}"]
        return "\n".join(lines)


def texts_of(sample: Sample) -> tuple[str, ...]:
    """Return the labels of a sample as they are listed, one or several.

    Example:
        >>> texts_of(Sample(Path("a.mp4"), "run")), texts_of(Sample(Path("a.mp4"), ("run", "jump")))
        (('run',), ('run', 'jump'))
    """
    return (sample.label,) if isinstance(sample.label, str) else sample.label


def label_text(value: Any) -> Any:
    """Return a label of JSON as it is written in a table, also numbers and lists; what can be no label as it is.

    Example:
        >>> label_text(0.5), label_text(["run", 3]), label_text([]), label_text(True)
        ('0.5', 'run|3', '|', True)
    """
    if isinstance(value, list) and all(type(one) in (str, int, float) for one in value):
        return "|".join(map(str, value)) or "|"
    return str(value) if type(value) is float and math.isfinite(value) else value


def split_label(text: str) -> str | tuple[str, ...]:
    """Return a label as it is listed, or several that ``|`` separates; ``|`` alone stands for none of the classes.

    Example:
        >>> split_label("run"), split_label("run|jump"), split_label("|")
        ('run', ('run', 'jump'), ())
    """
    return tuple(part.strip() for part in text.split("|") if part.strip()) if "|" in text else text


def counted(things: Collection | int, noun: str) -> str:
    """Return a number of things in words.

    Example:
        >>> counted(3, "class"), counted(["a.mp4"], "video")
        ('3 classes', '1 video')
    """
    count = things if isinstance(things, int) else len(things)
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending}"


def shown(names: Sequence[str], count: int = 8) -> str:
    """Return the first names, and how many more there are.

    Example:
        >>> shown("abc"), shown("abc", count=2)
        ('a, b, c', 'a, b and 1 more')
    """
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def shown_names(names: Sequence[str]) -> str:
    """Return the first names in quotes, and how many more there are.

    Example:
        >>> shown_names(["run", "walk"])
        "['run', 'walk']"
    """
    return f"[{shown([*map(repr, names)])}]"


def split_name(name: str) -> str:
    """Return the name of a split as it is used here.

    Example:
        >>> split_name("Validation"), split_name("train"), split_name("holdout")
        ('val', 'train', 'holdout')
    """
    name = name.strip().lower()
    return next((split for split, synonyms in SYNONYMS.items() if name in synonyms), name)


def is_split(name: str) -> bool:
    """Whether a word is the name of a split, whatever it is about.

    Example:
        >>> is_split("Validation"), is_split("run")
        (True, False)
    """
    return split_name(name) in SYNONYMS


def checked(label: str, where: str) -> str:
    """Return a label that can be the name of a class.

    Raises:
        ValueError: If it is a video file, or cannot be printed.
    """
    if is_video(label):
        raise ValueError(
            f"{where} has the video file {label!r} as its label. Write one video per line, and its label."
        )
    return encodable(label, where)


def encodable(label: str, where: str) -> str:
    """Return a label that can be written to files and to the terminal.

    Raises:
        ValueError: If it has lone surrogates, as from JSON that was cut, or from a name in another encoding.
    """
    try:
        label.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} has the label {label!r}, which is not valid Unicode. Correct the label.") from None
    return label
