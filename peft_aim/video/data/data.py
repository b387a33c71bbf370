"""The videos of a task, for training and evaluation, with checks of their quality."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from peft_aim.video.data.clips import open_sample, scan
from peft_aim.video.data.decode import BrokenVideo
from peft_aim.video.data.labels import as_text, classes_in
from peft_aim.video.data.leaks import notes_on_leaks
from peft_aim.video.data.listing import (
    Listing,
    Sample,
    VideoSource,
    class_names,
    indexed,
    merged,
    problem_type_of,
    shown_names,
    split_name,
)
from peft_aim.video.data.remarks import Remarks
from peft_aim.video.problem_type import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from peft_aim.video.processes import processes
from peft_aim.video.recipe import Recipe

NO_VAL = (
    "There is no val split, so the adapter is not evaluated: the last weights are kept, and curve.png shows the "
    "training loss only."
)


@dataclass(frozen=True)
class Data:
    """Labeled videos.

    Attributes:
        classes: Class names; of numbers, what they are called.
        train: Training videos, :func:`indexed` by these names.
        val: Validation videos; may be empty.
        problem_type: What labels mean, see :mod:`peft_aim.video.problem_type`.
        summary: What was read for each split and what was left out, in words.
    """

    classes: list[str]
    train: Sequence[Sample]
    val: Sequence[Sample] = ()
    problem_type: str = SINGLE_LABEL
    summary: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def find(
        cls,
        videos: str | Path,
        val: str | Path | None = None,
        root: str | Path | None = None,
        classes: list[str] | None = None,
        problem_type: str | None = None,
    ) -> Data:
        """Find the videos of the splits "train" and "val".

        Args:
            videos: A folder, list or table, see :func:`peft_aim.video.data.listing.find_videos`.
            val: The validation videos, if they are not the val split of ``videos``: a folder, list or table.
            root: Folder that the paths in lists and tables are relative to.
            classes: Class names, for videos labeled by index; of numbers, what to call them.
            problem_type: What labels mean; None takes several classes per video if some have several, else one. That
                they are numbers has to be given.

        Raises:
            ValueError: If there are no videos, only one class, a class in val that is not in train, labels of several
                kinds, or all numbers are the same.
        """
        source, named = VideoSource(videos, root), not classes  # by their labels
        train = source.listing("train")
        found = {"train": read_labels(train, problem_type)}
        summaries, by_name = {"train": train}, {"train": named and source.is_folder}
        if val is not None or source.has("val"):
            other = source if val is None else VideoSource(val, root)
            # A table that is given for validation may have other splits, too.
            held_out = other.listing(next((name for name in ("val", "test") if other.has(name)), None))
            found["val"], summaries["val"] = read_labels(held_out, problem_type), held_out
            by_name["val"] = named and other.is_folder
        everything = [video for videos in found.values() for video in videos]
        kind = problem_type or problem_type_of(everything)
        classes = class_names(found["train"], classes or train.classes, by_name["train"], kind)
        of_splits = {name: indexed(videos, classes, by_name[name], kind) for name, videos in found.items()}
        what = "number" if kind == REGRESSION else "class"
        summary = [listing.summary(split, what) for split, listing in summaries.items()]
        summary += about_labels(everything, kind, problem_type is None)
        return cls(classes, **of_splits, problem_type=kind, summary=tuple(summary))

    @property
    def fingerprint(self) -> str:
        """Hash of the splits, classes and paths of all videos, see :func:`listed`."""
        return hashlib.sha256(listed(self).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def without_broken(self, recipe: Recipe) -> tuple[Data, Remarks]:
        """Read a clip of every video once, and leave out the training videos that cannot be read.

        Broken validation videos stay, since evaluation counts the videos it skips.

        Args:
            recipe: The recipe, for ``min_frames`` and ``workers``.

        Returns:
            The data without broken training videos, and what was noticed about the videos of both splits.

        Raises:
            ValueError: If no video of a split can be read.
        """
        remarks, broken = Remarks(), set()
        for split in ("train", "val"):
            videos = getattr(self, split)
            found = scan(videos, recipe.min_frames, recipe.fps, recipe.workers, split) if videos else {}
            skipped = {path: seen["skipped"] for path, seen in found.items() if seen["skipped"]}
            if videos and len(skipped) == len(found):
                raise ValueError(
                    f"None of the {len(videos)} {split} videos can be read. {next(iter(skipped.values()))}"
                )
            for seen in found.values():
                remarks.take({kind: [remark] for kind, remark in seen.items()})
            broken |= skipped.keys()
        return replace(self, train=[video for video in self.train if str(video) not in broken]), remarks


def read_labels(listing: Listing, problem_type: str | None) -> list[Sample]:
    """Return the videos of a listing; rows of one video with several classes become one. Numbers are left apart.

    Raises:
        ValueError: If the problem type is not given, and so few videos are listed with several classes that these are
            likely to be mistakes.
    """
    if problem_type == REGRESSION:
        return listing.videos
    videos = merged(listing.videos)
    if problem_type is None and problem_type_of(listing.videos) == SINGLE_LABEL:
        several = [video for video in videos if not isinstance(video.label, str)]
        if 0 < len(several) < FEW * len(videos):
            raise ValueError(
                f"{len(several)} of {len(videos)} videos have several labels, {several[0]} for example: "
                f"{shown_names(several[0].label)}. Give one label per video, or --problem-type {MULTI_LABEL} if they "
                "may have several."
            )
    return videos


FEW = 0.05  # of the videos


def about_labels(videos: Sequence[Sample], problem_type: str, inferred: bool) -> list[str]:
    """Return in words that videos may have several classes, if they may, and how that is known."""
    if problem_type != MULTI_LABEL:
        return []
    several = [video for video in videos if not isinstance(video.label, str) and len(video.label) > 1]
    example = f", {several[0]} for example" if several else ""
    why = "so this is" if inferred else "as given by"
    return [
        f"{len(several)} of {len(videos)} videos have several labels{example}, {why} problem_type={problem_type!r}: "
        "each class is predicted by itself."
    ]


def listed(data: Data) -> str:
    r"""Return the videos of both splits, a line "split, label, path" for each, separated by tabs; segments with times.

    Example:
        >>> listed(Data(["run", "walk"], [Sample(Path("a.mp4"), 0)], [Sample(Path("b.mp4"), 1)]))
        'train\trun\ta.mp4\nval\twalk\tb.mp4\n'
    """
    splits = {split: getattr(data, split) for split in ("train", "val")}
    rows = [(split, as_text(one.label, data.classes), one) for split, videos in splits.items() for one in videos]
    return "".join("\t".join(map(_one_cell, row)) + "\n" for row in rows)


def _one_cell(value: object) -> str:
    return str(value).replace("\t", r"\t").replace("\n", r"\n")


def notes_on(data: Data) -> list[str]:
    """Return what limits the results: a missing val split, rare classes, and videos that are given twice.

    Videos are compared by the main process only.
    """
    notes = [] if data.val else [NO_VAL]
    of_classes = (("train", 0, "no videos"), ("train", 1, "only one video"), ("val", 0, "no videos"))
    for split, count, few in of_classes if data.problem_type != REGRESSION else ():
        counts = Counter(label for video in getattr(data, split) for label in classes_in(video.label))
        rare = [name for label, name in enumerate(data.classes) if counts[label] == count]
        if rare and counts:
            notes.append(f"The {split} split has {few} of the classes {shown_names(rare)}.")
    if not processes().is_main_process:
        return notes
    named = (
        [replace(video, label=as_text(video.label, data.classes)) for video in videos]
        for videos in (data.train, data.val)
    )
    return [*notes, *notes_on_leaks(*named)]


def notes_on_evaluation(videos: Sequence[Sample], source: VideoSource, split: str) -> list[str]:
    """Return what limits the results on a split: videos that are given twice, or are in the train split, too.

    Videos are compared by the main process only.

    Args:
        videos: The videos to evaluate on.
        source: Where they are from.
        split: Their split.
    """
    if not processes().is_main_process:
        return []
    train: Sequence[Sample] = []
    with suppress(ValueError):  # a train split that cannot be read is no fault of this one
        if split_name(split) != "train" and source.has("train"):
            train = merged(source.listing("train").videos)
    return notes_on_leaks(train, videos, split)


def typical_timing(videos: Sequence[Sample], fps: float, sample: int = 25) -> tuple[float | None, float | None]:
    """Return the median length and frame rate of a sample of the videos, None for what cannot be known.

    Args:
        videos: The videos.
        fps: Frames per second of folders of images.
        sample: About how many videos to open.

    Returns:
        Time of the last frame in seconds, None if no video can be read, and frames per second, None if none has two.
    """
    lengths, rates = [], []
    for one in videos[:: max(1, len(videos) // sample)]:
        try:
            with open_sample(one, fps) as video:
                lengths.append(video.seconds[-1])
                rates += [(len(video.seconds) - 1) / lengths[-1]] if lengths[-1] else []
        except BrokenVideo:
            continue
    return _median(lengths), _median(rates)


def _median(numbers: list[float]) -> float | None:
    return round(float(np.median(numbers)), 2) if numbers else None
