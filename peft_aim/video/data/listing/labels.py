"""What labels mean: the names of classes or their indices, one or several per video, or numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peft_aim.video.data.listing.contents import shown, shown_names, texts_of
from peft_aim.video.data.listing.files import nfc
from peft_aim.video.data.listing.sample import Sample
from peft_aim.video.data.listing.text import read_text
from peft_aim.video.problem_type import MULTI_LABEL, REGRESSION, SINGLE_LABEL


def merged(videos: Sequence[Sample]) -> list[Sample]:
    """Return the samples so that those that are listed several times, with different labels, become one with them all.

    Example:
        >>> rows = [Sample(Path("a.mp4"), "run"), Sample(Path("b.mp4"), "run"), Sample(Path("a.mp4"), "jump")]
        >>> [video.label for video in merged(rows)]
        [('run', 'jump'), 'run']
    """
    labels: dict[tuple, dict] = {}
    for video in videos:
        labels.setdefault((video.path, video.start, video.end), {}).setdefault(video.label, video)
    found = []
    for video in videos:
        same = labels[video.path, video.start, video.end]
        if len(same) == 1:
            found.append(video)
        elif next(iter(same.values())) is video:
            texts = dict.fromkeys(text for other in same.values() for text in texts_of(other))
            found.append(replace(video, label=tuple(texts)))
    return found


def class_names(
    videos: Sequence[Sample],
    names: list[str] | None = None,
    by_name: bool = False,
    problem_type: str | None = None,
) -> list[str]:
    """Return the names of the classes, in the order of their indices; of numbers, what they are called.

    Args:
        videos: The training videos.
        names: Class names, for videos labeled by index; None derives them from the labels.
        by_name: Whether labels are names even if they look like indices, such as folders "1" and "2".
        problem_type: What labels mean; None is one class per video.

    Raises:
        ValueError: If there is only one class, or a label is not one of the names.

    Example:
        >>> class_names([Sample(Path("a.mp4"), "walk"), Sample(Path("b.mp4"), "run")])
        ['run', 'walk']
        >>> class_names([Sample(Path("a.mp4"), "2"), Sample(Path("b.mp4"), "0")])
        ['0', '1', '2']
        >>> class_names([Sample(Path("a.mp4"), ("1.5", "2"))], problem_type="regression")
        ['value 0', 'value 1']
    """
    if names is None:
        labels = {nfc(text) for video in videos for text in texts_of(video)}
        numbered = not by_name and all(label.isdecimal() and str(int(label)) == label for label in labels)
        if problem_type == REGRESSION:
            count = len(texts_of(videos[0]))
            names = ["value"] if count == 1 else [f"value {i}" for i in range(count)]
        else:
            names = [str(i) for i in range(max(map(int, labels), default=-1) + 1)] if numbered else sorted(labels)
    names = [nfc(name) for name in names]
    if len(names) == (problem_type != MULTI_LABEL) and problem_type != REGRESSION:
        what = (
            f"only one class, {names[0]!r}. Give videos of at least two" if names else "no class. Give some videos one"
        )
        raise ValueError(f"There is {what}.")
    indexed(videos, names, by_name, problem_type)
    return names


def by_index(videos: Sequence[Sample], classes: list[str]) -> bool:
    """Whether videos are labeled by the index of their class, not by its name, which is then no number itself.

    Example:
        >>> videos = [Sample(Path("a.mp4"), "1")]
        >>> by_index(videos, ["run", "walk"]), by_index(videos, ["1", "2"])
        (True, False)
    """
    numbers = {text.isdecimal() for video in videos for text in texts_of(video)} == {True}
    return numbers and not any(name.isdecimal() for name in classes)


def indexed(
    videos: Sequence[Sample], classes: list[str], by_name: bool = False, problem_type: str | None = None
) -> list[Sample]:
    """Return the videos with labels as training and evaluation need them.

    Args:
        videos: The videos, each :func:`merged`.
        classes: Class names in the order of their indices, or what numbers are called.
        by_name: Whether labels are names, even if all of them look like indices.
        problem_type: What labels mean; None is one class per video.

    Returns:
        The videos; each label is the index of a class, for several classes the set of their indices, for numbers their
        tuple.

    Raises:
        ValueError: If a label is not one of the classes or not a number, or a video has several or too few of them.

    Example:
        >>> videos = [Sample(Path("a.mp4"), ("walk", "run"))]
        >>> indexed(videos, ["run", "walk"], problem_type="multi_label_classification")[0].label
        frozenset({0, 1})
    """
    if problem_type == REGRESSION:
        return [replace(video, label=_numbers(video, videos, len(classes))) for video in videos]
    numbered = not by_name and by_index(videos, classes)
    index = {str(i) if numbered else nfc(name): i for i, name in enumerate(classes)}
    unknown = sorted({nfc(text) for video in videos for text in texts_of(video)} - index.keys())
    if unknown:
        first = next(video for video in videos if unknown[0] in map(nfc, texts_of(video)))
        raise ValueError(
            f"{first} has the label {unknown[0]!r}, which is not one of the classes {shown_names(classes)}. "
            "Correct the label."
        )
    if problem_type == MULTI_LABEL:
        return [replace(video, label=frozenset(index[nfc(text)] for text in texts_of(video))) for video in videos]
    several = next((video for video in videos if not isinstance(video.label, str)), None)
    if several is not None:
        raise ValueError(
            f"{several} has the labels {shown_names(several.label)}, but the adapter predicts one class per video "
            f"({SINGLE_LABEL}). Give one label per video, or train with --problem-type {MULTI_LABEL}."
        )
    return [replace(video, label=index[nfc(video.label)]) for video in videos]


def problem_type_of(videos: Sequence[Sample]) -> str:
    """Return what labels mean by their number: several classes if a video has several, else one class per video."""
    return SINGLE_LABEL if all(isinstance(video.label, str) for video in videos) else MULTI_LABEL


def read_names(path: str | Path) -> list[str]:
    """Read class names, one per line, in the order of their indices.

    Raises:
        ValueError: If the file does not exist.
    """
    if not Path(path).is_file():
        raise ValueError(f"The file of class names {path} does not exist. Give a text file with one name per line.")
    return [nfc(line.strip()) for line in read_text(Path(path)).split("\n") if line.strip()]


def _numbers(video: Sample, videos: Sequence[Sample], count: int) -> tuple[float, ...]:
    """Return the numbers of a video.

    Raises:
        ValueError: If there are not so many, or one is not a finite number.
    """
    texts = texts_of(video)
    wrong = [text for text in texts if not is_number(text)]
    if wrong:
        others = [text for other in videos for text in texts_of(other) if not is_number(text)]
        raise ValueError(
            f"{video} has the label {wrong[0]!r}, which is not a number: {len(others)} of the labels are none, "
            f"{shown([*map(repr, dict.fromkeys(others))], 3)}. Correct the label, or leave out "
            f"problem_type={REGRESSION!r} (--problem-type) to train on classes."
        )
    if len(texts) != count:
        raise ValueError(
            f"{video} has {len(texts)} numbers as its label, {'|'.join(texts)!r}, but {count} are needed, as for "
            "others. Give the same number of them for each video, separated by |, in one row per video."
        )
    return tuple(map(float, texts))


def is_number(text: str) -> bool:
    """Return whether a label is a finite number.

    Example:
        >>> is_number("-1.5e3"), is_number("nan"), is_number("run")
        (True, False, False)
    """
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
