"""What a file of videos contains, whatever its form, and what is found on disk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peft_aim.video.data.listing.files import is_video

SYNONYMS = {
    "train": ("training",),
    "val": ("valid", "validate", "validation", "dev"),
    "test": ("testing",),
}
TEST = ("val", "test")  # splits of the test videos of data sets without another val split


@dataclass(frozen=True, slots=True)
class Labeled:
    """A video file or folder of frames, and the name of its class, or the index of its class as a string of digits."""

    path: Path
    label: str


@dataclass(slots=True)  # not frozen, which would take three times as long for rows by the hundred thousand
class Row:
    """A video as a file names it.

    Attributes:
        names: Paths or ids it may have; the first counts if none exists.
        label: Its label.
        splits: Splits it belongs to; empty if the file has no splits.
        folders: Folders it may be in, besides those named after the label and the file.
    """

    names: tuple[str, ...]
    label: str
    splits: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


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

    videos: list[Labeled]
    source: Path
    form: str
    classes: list[str] | None = None
    left_out: tuple[str, ...] = ()
    missing: tuple[Path, ...] = ()

    def summary(self, split: str) -> str:
        """Return what was read and what was left out, in words.

        Example:
            >>> videos = [Labeled(Path("a.mp4"), "run"), Labeled(Path("b.mp4"), "walk")]
            >>> listing = Listing(videos, Path("all.csv"), "column 'tag' as label", left_out=("1 comment",))
            >>> print(listing.summary("train"))
            2 videos of 2 classes in train from all.csv (column 'tag' as label)
            Left out: 1 comment
        """
        videos, classes = counted(self.videos, "video"), counted({video.label for video in self.videos}, "class")
        lines = [f"{videos} of {classes} in {split} from {self.source.name} ({self.form})"]
        lines += [f"Left out: {', '.join(self.left_out)}"] if self.left_out else []
        if self.missing:
            hint = " Give the folder of the videos with --root." if len(self.missing) == len(self.videos) else ""
            lines += [f"Missing: {counted(self.missing, 'file')}, {self.missing[0]} for example.{hint}"]
        return "\n".join(lines)


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
        ValueError: If it is a video file, several labels in one, or cannot be printed.
    """
    if is_video(label):
        raise ValueError(
            f"{where} has the video file {label!r} as its label. Write one video per line, and its label."
        )
    if "|" in label:
        raise ValueError(
            f"{where} has the labels {label!r}. Several labels per video are not supported yet: give one of them."
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
