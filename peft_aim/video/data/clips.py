"""Datasets of clips: random ones of videos for training, all views of a video for evaluation, and mere noise."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from tqdm.contrib.concurrent import process_map

from peft_aim.video.data.decode import BrokenVideo, Video, open_video
from peft_aim.video.data.sampling import evaluation_frames, training_frames
from peft_aim.video.data.transforms import ForEvaluation, ForTraining, Preprocessing
from peft_aim.video.processes import processes
from peft_aim.video.recipe import Recipe

IGNORED = -100  # label of a clip that could not be read, as losses know it


class TrainingClips(Dataset):
    """A random clip of each video, the same in every run: it depends on seed, epoch and video only.

    So training doesn't depend on how many processes and workers share it, and can be resumed at any step. For the
    same reason black clips that don't count make up whole batches: processes would repeat others to have equal shares.

    Args:
        videos: The videos with the indices of their classes.
        recipe: Which frames to take, and what is to be done to them.
        transform: Prepares frames and label.

    Returns:
        By index, ``{"clips": (T, 3, H, W), "labels": int, "seconds": float, "skipped": str}``: the last two are the
        time it took, and the reason why a video cannot be read, of which the label is -100.
    """

    def __init__(self, videos: Sequence[tuple[Path, int]], recipe: Recipe, transform: ForTraining) -> None:
        self.videos, self.recipe, self.transform = videos, recipe, transform
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # workers that outlive an epoch see it, too

    def __len__(self) -> int:
        return math.ceil(len(self.videos) / self.recipe.batch_size) * self.recipe.batch_size

    def __getitem__(self, i: int) -> dict[str, Any]:
        _leave_interrupts_to_the_main_process()
        if i >= len(self.videos):
            clip, _ = self.transform(_Black().read(range(self.recipe.frames)), 0)
            return {"clips": clip, "labels": IGNORED, "seconds": 0.0, "skipped": ""}
        began, (path, label), skipped = time.perf_counter(), self.videos[i], ""
        with _seeded(self.recipe.seed, int(self.epoch), i):
            try:
                with opened(path, self.recipe.min_frames) as video:
                    frames = video.read(training_frames(len(video.seconds), self.recipe.frames, self.recipe.stride))
            except BrokenVideo as error:
                frames, skipped = _Black().read(range(self.recipe.frames)), str(error)
            clip, label = self.transform(frames, label)
        label = IGNORED if skipped else label
        return {"clips": clip, "labels": label, "seconds": time.perf_counter() - began, "skipped": skipped}


class NoiseClips(Dataset):
    """Noise in place of videos, to see how fast a model is by itself.

    Args:
        count: Number of clips.
        shape: Shape of a clip, ``(T, 3, H, W)``.
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.count, self.clip = count, torch.randn(shape)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"clips": self.clip, "labels": i % 2, "seconds": 0.0, "skipped": ""}


class EvaluationClips(Dataset):
    """All views of each video.

    Args:
        videos: The videos with the indices of their classes.
        frames: Frames T per clip.
        stride: Distance of the frames; None takes one of each of T equal segments.
        views: Number K of clips per video, and of crops per frame.
        preprocessing: How the backbone wants its images.
        min_frames: Videos of fewer frames are skipped.

    Returns:
        By index, ``{"clips": (V, T, 3, H, W), "labels": int, "skipped": str}``. The first ``count`` =
        clips x crops views are those to be averaged; the one at ``single`` is the view of 1 x 1, which is among them
        if their numbers are odd.
    """

    def __init__(
        self,
        videos: Sequence[tuple[Path, int]],
        frames: int,
        stride: int | None,
        views: tuple[int, int],
        preprocessing: Preprocessing,
        min_frames: int,
    ) -> None:
        self.videos, self.frames, self.min_frames = videos, frames, min_frames
        (clips, crops), self.count = views, views[0] * views[1]
        has_centre = clips % 2 and crops % 2
        self.single = self.count // 2 if has_centre else self.count
        self.kinds = [
            (partial(evaluation_frames, frames=frames, stride=stride, clips=k), ForEvaluation(preprocessing, c))
            for k, c in ([(clips, crops)] if has_centre else [(clips, crops), (1, 1)])
        ]

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, i: int) -> dict[str, Any]:
        (path, label), skipped = self.videos[i], ""
        try:
            with opened(path, self.min_frames) as video:
                clips = [read_views(video, range(len(video.seconds)), *kind) for kind in self.kinds]
        except BrokenVideo as error:
            clips, skipped = [read_views(_Black(), range(self.frames), *kind) for kind in self.kinds], str(error)
        return {"clips": torch.cat(clips), "labels": IGNORED if skipped else label, "skipped": skipped}


class _Black:
    """Stands for a video that cannot be read."""

    def read(self, indices: Sequence[int]) -> Tensor:
        return torch.zeros(len(indices), 3, 64, 64, dtype=torch.uint8)


def read_views(
    video: Video, within: range, sample: Callable[[int], list[list[int]]], transform: Callable[[Tensor], Tensor]
) -> Tensor:
    """Read all views of a part of a video.

    Args:
        video: The video.
        within: The frames of the part.
        sample: Chooses the frames of each of K clips from their number.
        transform: Prepares all crops of a clip.

    Shape:
        ``(K * crops, T, 3, H, W)``
    """
    chosen = sample(len(within))
    frames = video.read([within[i] for clip in chosen for i in clip])  # (K*T, 3, H', W')
    return torch.cat([transform(clip) for clip in frames.split(len(chosen[0]))])


@contextmanager
def opened(path: Path, min_frames: int) -> Iterator[Video]:
    """Open a video that is not too short.

    Raises:
        BrokenVideo: If it cannot be read, or has fewer frames.
    """
    with open_video(path) as video:
        count = len(video.seconds)
        if count < min_frames:
            raise BrokenVideo(f"{path} has {count} frame{'s' * (count > 1)}, fewer than min_frames={min_frames}.")
        yield video


def scan(videos: Sequence[tuple[Path, int]], min_frames: int, workers: int, what: str) -> dict[Path, str]:
    """Open every video and decode its first frame, with a progress bar: in one process for all that train.

    Returns:
        Those that cannot be read, with the reason.
    """
    paths, found = [path for path, _ in videos], [None]
    if processes().is_main_process:
        look = partial(_trouble, min_frames=min_frames)
        options = {"max_workers": max(1, workers), "chunksize": 8, "desc": f"Checking {what}", "unit": "video"}
        found = [process_map(look, paths, **options)]
    return {path: trouble for path, trouble in zip(paths, broadcast_object_list(found)[0], strict=True) if trouble}


def _trouble(path: Path, min_frames: int) -> str:
    try:
        with opened(path, min_frames) as video:
            video.read([0])
    except BrokenVideo as error:
        return str(error)
    return ""


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Draw random numbers that depend on nothing but these, and leave others' as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(mixed(*numbers))
        yield


def mixed(*numbers: int) -> int:
    """Return a seed for random numbers that depend on several numbers."""
    return hash(numbers) & (2**63 - 1)  # of integers it is alike in all processes


def _leave_interrupts_to_the_main_process() -> None:
    """Go on after Ctrl-C, which a terminal sends to all processes: the main one stops the others when it is ready."""
    if get_worker_info() is not None and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
