"""Datasets of clips: random clips for training, all views of a video for evaluation, and noise for benchmarking."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from tqdm.contrib.concurrent import process_map

from peft_aim.video.data.balance import balanced
from peft_aim.video.data.decode import BrokenVideo, Segment, Video, open_video
from peft_aim.video.data.labels import target_of
from peft_aim.video.data.listing import Label, Sample
from peft_aim.video.data.sampling import evaluation_frames, training_frames
from peft_aim.video.data.transforms import ForTraining
from peft_aim.video.data.views import Views
from peft_aim.video.processes import once
from peft_aim.video.recipe import Recipe

IGNORED = -100  # label of a clip that cannot be read: the default ignore_index of torch's cross_entropy


class TrainingClips(Dataset):
    """One random clip per video; it depends on seed, epoch and video only, so it is the same in every run.

    With ``balance="sampling"``, an epoch has as many clips, of videos drawn by seed and epoch.

    Training therefore does not depend on the number of processes and workers, and can be resumed at any step. For the
    same reason black clips, which the loss ignores, fill the last batch: otherwise processes would repeat other clips
    to get equal shares.

    Args:
        videos: The videos, see :func:`peft_aim.video.data.indexed`.
        recipe: The recipe, for sampling frames.
        transform: Preprocessing and augmentation of frames and label.

    Returns:
        By index, ``{"clips": (T, 3, H, W), "labels": int, "targets": (C,), "seconds": float, **remarks}``. The label
        is the index of the class, 0 for several classes or numbers, and the target what the model should predict, see
        :func:`peft_aim.video.data.labels.target_of`. ``seconds`` is the loading time. The remarks on the video at
        "path" are "skipped", the reason why it cannot be read, and the label is then -100; "damaged", what cannot be
        decoded if it is much; "hdr", its path if it is in HDR; "" stands for none.
    """

    def __init__(self, videos: Sequence[Sample], recipe: Recipe, transform: ForTraining) -> None:
        self.videos, self.recipe, self.transform = videos, recipe, transform
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # persistent workers see the next epoch, too
        self._drawn: tuple[int, Sequence[int]] = (-1, range(len(videos)))

    def __len__(self) -> int:
        return self.recipe.steps(len(self.videos)) * self.recipe.batch_size

    @property
    def drawn(self) -> Sequence[int]:
        """Indices of the videos of the epoch."""
        epoch = int(self.epoch)
        if self.recipe.balance == "sampling" and self._drawn[0] != epoch:
            self._drawn = (epoch, balanced([video.label for video in self.videos], mixed(self.recipe.seed, epoch)))
        return self._drawn[1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        _leave_interrupts_to_the_main_process()
        if i >= len(self.videos):
            return {**self._labeled(self._clip(_Black(), self.videos[0].label), False), "seconds": 0.0, **_remarks()}
        began, sample = time.perf_counter(), self.videos[self.drawn[i]]
        with _seeded(self.recipe.seed, int(self.epoch), i):
            try:
                with long_enough(sample, self.recipe.min_frames, self.recipe.fps) as video:
                    clip = self._labeled(video.consistently(partial(self._clip, label=sample.label)))
                    remarks = _remarks(sample, video)
            except BrokenVideo as error:
                clip = self._labeled(self._clip(_Black(), sample.label), is_readable=False)
                remarks = _remarks(sample, skipped=str(error))
        return {**clip, "seconds": time.perf_counter() - began, **remarks}

    def _labeled(self, clip: tuple[Tensor, Label], is_readable: bool = True) -> dict[str, Any]:
        frames, label = clip
        number, target = _number(label) if is_readable else IGNORED, target_of(label, len(self.transform.classes))
        return {"clips": frames, "labels": number, "targets": target}

    def _clip(self, video: Video, label: Label) -> tuple[Tensor, Label]:
        chosen = training_frames(len(video.seconds), self.recipe.frames, self.recipe.stride)
        cutout = self.transform.cutout(video.size)
        return self.transform.finish(video.read(chosen, cutout), label, cutout)


class NoiseClips(Dataset):
    """Noise in place of videos, to measure the speed of a model without data loading.

    Args:
        count: Number of clips.
        shape: Shape of a clip, ``(T, 3, H, W)``.
        outputs: Number of outputs of the model.
    """

    def __init__(self, count: int, shape: tuple[int, ...], outputs: int) -> None:
        self.count, self.clip, self.target = count, torch.randn(shape), target_of(0, outputs)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"clips": self.clip, "labels": 0, "targets": self.target, "seconds": 0.0, **_remarks()}


class EvaluationClips(Dataset):
    """All views of each video.

    Args:
        videos: The videos, see :func:`peft_aim.video.data.indexed`.
        views: The views to average.
        min_frames: Videos with fewer frames are skipped.
        fps: Frames per second of folders of images.

    Returns:
        By index, ``{"clips": (V, T, 3, H, W), "labels": int, "index": int, **remarks}``, see :class:`TrainingClips`.
        There are ``total`` views V, of which the first ``views.count`` are those to average. The view at index
        ``single`` is that of 1 x 1; it is one of them if both numbers are odd.
    """

    def __init__(self, videos: Sequence[Sample], views: Views, min_frames: int, fps: float) -> None:
        self.videos, self.min_frames, self.fps = videos, min_frames, fps
        self.count = views.count
        self.single = views.count // 2 if views.has_center else views.count
        self.total = views.count if views.has_center else views.count + 1
        self.views = [views] if views.has_center else [views, views.single()]

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, i: int) -> dict[str, Any]:
        _leave_interrupts_to_the_main_process()
        sample = self.videos[i]
        label = _number(sample.label)
        try:
            with long_enough(sample, self.min_frames, self.fps) as video:
                clips = video.consistently(lambda video: [views.of(video) for views in self.views])
                remarks = _remarks(sample, video)
        except BrokenVideo as error:
            clips, label = [views.of(_Black()) for views in self.views], IGNORED
            remarks = _remarks(sample, skipped=str(error))
        return {"clips": torch.cat(clips), "labels": label, "index": i, **remarks}


class _Black(Video):
    """A black frame in place of a video that cannot be read."""

    def __init__(self) -> None:
        super().__init__("")
        self.seconds, self.size = [0.0], (64, 64)

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        return ((i, torch.zeros(3, *self.size, dtype=torch.uint8)) for i in indices)


def _number(label: Label) -> int:
    """Return the index of the class, 0 for several classes or numbers."""
    return label if isinstance(label, int) else 0


def _remarks(sample: Sample | str = "", video: Video | None = None, skipped: str = "") -> dict[str, str]:
    """Return what is to be reported about a video, see :class:`TrainingClips`."""
    damaged, hdr = (str(video.damage), str(sample) if video.hdr else "") if video else ("", "")
    return {"path": str(sample), "skipped": skipped, "damaged": damaged, "hdr": hdr}


@contextmanager
def open_sample(sample: Sample, fps: float) -> Iterator[Video]:
    """Open a video or the segment of it that a sample is.

    Raises:
        BrokenVideo: If it cannot be read, or the segment is outside of it.
    """
    with open_video(sample.path, fps) as video:
        yield Segment(video, sample.start, sample.end) if sample.is_segment else video


@contextmanager
def long_enough(sample: Sample, min_frames: int, fps: float) -> Iterator[Video]:
    """Open a video or segment with at least ``min_frames`` frames.

    Raises:
        BrokenVideo: If it cannot be read, or has fewer frames.
    """
    with open_sample(sample, fps) as video:
        count = len(video.seconds)
        if count < min_frames:
            raise BrokenVideo(f"{sample} has {count} frame{'s' * (count > 1)}, fewer than min_frames={min_frames}.")
        yield video


def scan(videos: Sequence[Sample], min_frames: int, fps: float, workers: int, what: str) -> dict[str, dict[str, str]]:
    """Read a clip of every video, with a progress bar; only the main process does so, for all.

    Args:
        videos: The videos.
        min_frames: Videos with fewer frames count as broken.
        fps: Frames per second of folders of images.
        workers: Number of worker processes, at least 1.
        what: Name of the split, for the progress bar.

    Returns:
        The remarks on each video by its text, see :class:`TrainingClips`.
    """
    look = partial(_remarks_on, min_frames=min_frames, fps=fps)
    options = {"max_workers": max(1, workers), "chunksize": 8, "desc": f"Checking {what}", "unit": "video"}
    return dict(zip(map(str, videos), once(lambda: process_map(look, videos, **options)), strict=True))


def why_unreadable(videos: Sequence[Sample], min_frames: int, fps: float) -> str:
    """Return why the first video cannot be read if none of them can; "" if any can, or if there are none."""
    reasons = (_remarks_on(video, min_frames, fps, frames=1)["skipped"] for video in videos)
    first = next(reasons, "")
    return first if first and all(reasons) else ""


def _remarks_on(sample: Sample, min_frames: int, fps: float, frames: int = 8) -> dict[str, str]:
    """Read one frame from each of so many equal segments of a video, for nothing but the remarks on it."""
    try:
        with long_enough(sample, min_frames, fps) as video:
            (chosen,) = evaluation_frames(len(video.seconds), frames, stride=None)
            video.read(chosen, lambda frame: frame[:, :1, :1].clone())
            return _remarks(sample, video)
    except BrokenVideo as error:
        return _remarks(sample, skipped=str(error))


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Seed torch's random numbers by these numbers, and restore the generator afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(mixed(*numbers))
        yield


def mixed(*numbers: int) -> int:
    """Combine several numbers into one seed."""
    return hash(numbers) & (2**63 - 1)  # hashes of integers are the same in all processes


def _leave_interrupts_to_the_main_process() -> None:
    """Ignore Ctrl-C in workers: a terminal sends it to all processes, but the main one stops them when it is ready."""
    if get_worker_info() is not None and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
