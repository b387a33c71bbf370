"""The names of classes and their indices."""

from __future__ import annotations

from pathlib import Path

from peft_aim.video.data.listing.contents import Labeled, shown_names
from peft_aim.video.data.listing.files import nfc
from peft_aim.video.data.listing.text import read_text


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
        labels = {nfc(video.label) for video in videos}
        numbered = not by_name and all(label.isdecimal() and str(int(label)) == label for label in labels)
        names = [str(i) for i in range(max(map(int, labels)) + 1)] if numbered else sorted(labels)
    names = [nfc(name) for name in names]
    if len(names) == 1:
        raise ValueError(f"There is only one class, {names[0]!r}. Give videos of at least two.")
    indexed(videos, names, by_name)
    return names


def by_index(videos: list[Labeled], classes: list[str]) -> bool:
    """Whether videos are labeled by the index of their class, not by its name, which is then no number itself.

    Example:
        >>> videos = [Labeled(Path("a.mp4"), "1")]
        >>> by_index(videos, ["run", "walk"]), by_index(videos, ["1", "2"])
        (True, False)
    """
    numbers = {video.label.isdecimal() for video in videos} == {True}
    return numbers and not any(name.isdecimal() for name in classes)


def indexed(videos: list[Labeled], classes: list[str], by_name: bool = False) -> list[tuple[Path, int]]:
    """Return the videos with the indices of their classes.

    Args:
        videos: The videos.
        classes: Class names in the order of their indices.
        by_name: Whether labels are names, even if all of them look like indices.

    Raises:
        ValueError: If a label is not one of the classes.
    """
    numbered = not by_name and by_index(videos, classes)
    index = {str(i) if numbered else nfc(name): i for i, name in enumerate(classes)}
    unknown = sorted({nfc(video.label) for video in videos} - index.keys())
    if unknown:
        first = next(video for video in videos if nfc(video.label) == unknown[0])
        raise ValueError(
            f"{first.path} has the label {unknown[0]!r}, which is not one of the classes {shown_names(classes)}. "
            "Correct the label."
        )
    return [(video.path, index[nfc(video.label)]) for video in videos]


def read_names(path: str | Path) -> list[str]:
    """Read class names, one per line, in the order of their indices.

    Raises:
        ValueError: If the file does not exist.
    """
    if not Path(path).is_file():
        raise ValueError(f"The file of class names {path} does not exist. Give a text file with one name per line.")
    return [nfc(line.strip()) for line in read_text(Path(path)).split("\n") if line.strip()]
