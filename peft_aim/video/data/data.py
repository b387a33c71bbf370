"""The videos of a task, for training and evaluation, with checks of their quality."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from peft_aim.video.data.clips import scan
from peft_aim.video.data.decode import BrokenVideo, open_video
from peft_aim.video.data.leaks import notes_on_leaks
from peft_aim.video.data.listing import Labeled, VideoSource, class_names, indexed, shown_names, split_name
from peft_aim.video.data.remarks import Remarks
from peft_aim.video.processes import processes
from peft_aim.video.recipe import Recipe

Videos = Sequence[tuple[Path, int]]

NO_VAL = (
    "There is no val split, so the adapter is not evaluated: the last weights are kept, and curve.png shows the "
    "training loss only."
)


@dataclass(frozen=True)
class Data:
    """Labeled videos.

    Attributes:
        classes: Class names.
        train: Training videos and the indices of their classes.
        val: Validation videos and the indices of their classes; may be empty.
        summary: What was read for each split and what was left out, in words.
    """

    classes: list[str]
    train: Videos
    val: Videos = ()
    summary: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def find(
        cls,
        videos: str | Path,
        val: str | Path | None = None,
        root: str | Path | None = None,
        classes: list[str] | None = None,
    ) -> Data:
        """Find the videos of the splits "train" and "val".

        Args:
            videos: A folder, list or table, see :func:`peft_aim.video.data.listing.find_videos`.
            val: The validation videos, if they are not the val split of ``videos``: a folder, list or table.
            root: Folder that the paths in lists and tables are relative to.
            classes: Class names, for videos labeled by index.

        Raises:
            ValueError: If there are no videos, only one class, or a class in val that is not in train.
        """
        source, named = VideoSource(videos, root), not classes  # by their labels
        train = source.listing("train")
        by_name = named and source.is_folder
        classes = class_names(train.videos, classes or train.classes, by_name)
        data = cls(classes, indexed(train.videos, classes, by_name), summary=(train.summary("train"),))
        if val is None and not source.has("val"):
            return data
        other = source if val is None else VideoSource(val, root)
        # A table that is given for validation may have other splits, too.
        held_out = other.listing(next((name for name in ("val", "test") if other.has(name)), None))
        summary = (*data.summary, held_out.summary("val"))
        return replace(data, val=indexed(held_out.videos, classes, named and other.is_folder), summary=summary)

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
            found = scan(videos, recipe.min_frames, recipe.workers, split) if videos else {}
            skipped = {path: seen["skipped"] for path, seen in found.items() if seen["skipped"]}
            if videos and len(skipped) == len(found):
                raise ValueError(
                    f"None of the {len(videos)} {split} videos can be read. {next(iter(skipped.values()))}"
                )
            for seen in found.values():
                remarks.take({kind: [remark] for kind, remark in seen.items()})
            broken |= skipped.keys()
        return replace(self, train=[video for video in self.train if video[0] not in broken]), remarks


def listed(data: Data) -> str:
    r"""Return the videos of both splits, a line "split, label, path" for each, separated by tabs.

    Example:
        >>> listed(Data(["run", "walk"], [("a.mp4", 0)], [("b.mp4", 1)]))
        'train\trun\ta.mp4\nval\twalk\tb.mp4\n'
    """
    rows = [(split, data.classes[label], path) for split in ("train", "val") for path, label in getattr(data, split)]
    return "".join("\t".join(map(_one_cell, row)) + "\n" for row in rows)


def _one_cell(value: object) -> str:
    return str(value).replace("\t", r"\t").replace("\n", r"\n")


def notes_on(data: Data) -> list[str]:
    """Return what limits the results: a missing val split, rare classes, and videos that are given twice.

    Videos are compared by the main process only.
    """
    notes = [] if data.val else [NO_VAL]
    for split, count, few in (("train", 0, "no videos"), ("train", 1, "only one video"), ("val", 0, "no videos")):
        counts = Counter(label for _, label in getattr(data, split))
        rare = [name for label, name in enumerate(data.classes) if counts[label] == count]
        if rare and counts:
            notes.append(f"The {split} split has {few} of the classes {shown_names(rare)}.")
    if not processes().is_main_process:
        return notes
    named = ([(path, data.classes[label]) for path, label in videos] for videos in (data.train, data.val))
    return [*notes, *notes_on_leaks(*named)]


def notes_on_evaluation(videos: list[Labeled], source: VideoSource, split: str) -> list[str]:
    """Return what limits the results on a split: videos that are given twice, or are in the train split, too.

    Videos are compared by the main process only.

    Args:
        videos: The videos to evaluate on.
        source: Where they are from.
        split: Their split.
    """
    if not processes().is_main_process:
        return []
    train: list[Labeled] = []
    with suppress(ValueError):  # a train split that cannot be read is no fault of this one
        train = source.listing("train").videos if split_name(split) != "train" and source.has("train") else []
    splits = ([(video.path, video.label) for video in of_split] for of_split in (train, videos))
    return notes_on_leaks(*splits, split)


def typical_timing(videos: Videos, fps: float, sample: int = 25) -> tuple[float | None, float | None]:
    """Return the median length and frame rate of a sample of the videos, None for what cannot be known.

    Args:
        videos: The videos and the indices of their classes.
        fps: Frames per second of folders of images.
        sample: About how many videos to open.

    Returns:
        Time of the last frame in seconds, None if no video can be read, and frames per second, None if none has two.
    """
    lengths, rates = [], []
    for path, _ in videos[:: max(1, len(videos) // sample)]:
        try:
            with open_video(path, fps) as video:
                lengths.append(video.seconds[-1])
                rates += [(len(video.seconds) - 1) / lengths[-1]] if lengths[-1] else []
        except BrokenVideo:
            continue
    return _median(lengths), _median(rates)


def _median(numbers: list[float]) -> float | None:
    return round(float(np.median(numbers)), 2) if numbers else None
