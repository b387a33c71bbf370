"""Embed videos with a saved adapter: one vector per video, of which similar videos have similar ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from torch import Tensor, nn

from peft_aim.files import written_together
from peft_aim.video.adapters import load_adapters
from peft_aim.video.backbones import Source
from peft_aim.video.data import IGNORED, EvaluationClips, Remarked, Remarks, Sample, given_videos, texts_of
from peft_aim.video.output import check_writable
from peft_aim.video.over_videos import in_batches, over_videos
from peft_aim.video.processes import once, processes

SUFFIXES = (".safetensors", ".csv")


@dataclass(frozen=True)
class Embeddings(Remarked):
    """The vectors of videos.

    Attributes:
        vectors: The vectors, ``(V, D)`` in float32: features before the head, averaged over views, not normalized.
        videos: The videos or segments, as they were given or found, with their labels.
        facts: What they were made with: adapter, fingerprint of the frozen weights, views and dimensions.
        remarks: What was noticed about the videos; those that cannot be read have no vector.
    """

    vectors: np.ndarray
    videos: list[Sample]
    facts: dict[str, str]
    remarks: Remarks = field(default_factory=Remarks)

    @property
    def paths(self) -> list[str]:
        """The path of each video."""
        return [str(video.path) for video in self.videos]

    @property
    def labels(self) -> list[str]:
        """The label of each video, several joined by "|"; "" where none is known."""
        return ["|".join(texts_of(video)) for video in self.videos]

    def write(self, output: str | Path) -> None:
        """Write OUTPUT.safetensors and OUTPUT.csv, whose row i is of vector i, together or not at all.

        The columns of the table are path, label if labels are known, and start and end, in seconds, of segments.

        Args:
            output: Their path, without suffix or with one of the two.

        Raises:
            OSError: If they cannot be written.
        """
        stem, table = without_suffix(output), io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        columns: dict[str, list] = {"path": self.paths}
        if any(self.labels):
            columns["label"] = self.labels
        if any(video.is_segment for video in self.videos):
            columns |= {name: [getattr(video, name) for video in self.videos] for name in ("start", "end")}
        writer.writerows([columns, *zip(*columns.values(), strict=True)])
        with written_together(stem.parent) as folder:
            (folder / f"{stem.name}.safetensors").write_bytes(save({"embeddings": self.vectors}, self.facts))
            (folder / f"{stem.name}.csv").write_bytes(table.getvalue().encode("utf-8", "surrogateescape"))


def embed(
    adapter: str | Path,
    videos: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    split: str | None = None,
    root: str | Path | None = None,
    views: tuple[int, int] | None = None,
    batch_size: int = 8,
    workers: int = 1,
    source: Source | None = None,
) -> Embeddings:
    """Return one vector per video: the features of an adapted model, averaged over the views of the video.

    They are what the adapter's head receives, see ``AIMModel.features``, on all processes that accelerate has
    launched. They have any length; for angles between them, use a cosine distance.

    Args:
        adapter: Folder or Hub id of the adapter.
        videos: One or several of: a video file, a URL, a folder of images, a folder of videos, with those in its
            subfolders, or a list or table of videos, see :func:`peft_aim.video.data.listing.find_videos`.
        output: Where to write the vectors and the table of videos, see :meth:`Embeddings.write`; None writes nothing.
        split: Split of folders, then ``<split>/<class>/*``, of lists and tables; None uses all videos.
        root: Folder that the paths in a list or table are relative to.
        views: Clips per video and crops per frame; None uses those recorded in the adapter.
        batch_size: Views per forward pass.
        workers: Processes that load videos.
        source: Where to load the backbone from; None uses the source recorded in the adapter.

    Raises:
        ValueError: If the adapter, the backbone or the videos cannot be found or loaded, no video can be read,
            features are NaN or infinite, ``views`` or ``batch_size`` is not positive, or ``output`` exists or cannot
            be written to.
        OSError: If the files cannot be written.

    Example:
        >>> from sklearn.neighbors import NearestNeighbors
        >>> found = embed("my-task", "videos")  # doctest: +SKIP
        >>> nearest = NearestNeighbors(metric="cosine").fit(found.vectors)  # doctest: +SKIP
        >>> nearest.kneighbors(embed("my-task", "new.mp4").vectors)  # doctest: +SKIP
    """
    if output is not None:
        once(partial(check_new, output))
    if min(views or (1, 1)) < 1:
        raise ValueError(f"views={views} is not positive. Give at least 1 clip per video and 1 crop per frame.")
    if batch_size < 1:
        raise ValueError(
            f"batch_size={batch_size} is not positive. Give the number of views per forward pass, 1 or more."
        )
    found = once(partial(given_videos, videos, split, root))
    loaded = load_adapters(str(adapter), source)
    description, config = loaded.descriptions[0], loaded.model.active_peft_config
    made = description.views_with(*(views or description.views))
    clips = EvaluationClips(found, made, 1, description.fps)
    features = partial(_features, loaded.model, count=clips.count, batch_size=batch_size)
    vectors, labels, rows, remarks = over_videos(
        loaded.model, clips, features, batch_size, workers, "Embedding", "features"
    )
    vectors, rows = vectors[labels != IGNORED].numpy(), rows[labels != IGNORED].tolist()
    if not rows:
        raise ValueError(f"None of the {len(found)} videos can be read. {remarks.skipped[0]}")
    facts = {
        "adapter": str(adapter),
        "fingerprint": config.backbone_fingerprint or "",
        "views": f"{made.clips}x{made.crops}",
        "dims": str(vectors.shape[1]),
    }
    result = Embeddings(vectors, [found[row] for row in rows], facts, remarks)
    if output is not None and processes().is_main_process:
        result.write(output)
    return result


def _features(model: nn.Module, batch: dict[str, Any], count: int, batch_size: int) -> Tensor:
    """Return the features of each video, averaged over its first views, ``(videos, D)`` in float32."""
    clips = batch["clips"][:, :count].flatten(0, 1)
    found = in_batches(model, lambda chunk: model.features(chunk).float(), clips, batch_size)
    return found.unflatten(0, (-1, count)).mean(1)


def check_new(output: str | Path) -> None:
    """Check that both files can be written, and that neither exists.

    Raises:
        ValueError: If they cannot, if one exists, or if there is a folder of this name.

    Example:
        >>> check_new(".")
        Traceback (most recent call last):
        ValueError: The output . is a folder. Give the name of the files in it, such as embeddings.
    """
    stem = without_suffix(output)
    if Path(output).is_dir() or not stem.name:
        raise ValueError(
            f"The output {output} is a folder. Give the name of the files in it, such as {Path(output, 'embeddings')}."
        )
    for suffix in SUFFIXES:
        path = stem.with_name(stem.name + suffix)
        if path.exists():
            raise ValueError(f"The output {path} exists. Give another name, or remove it.")
    check_writable(stem.parent)


def without_suffix(output: str | Path) -> Path:
    """Return the path of both files without their suffix.

    Example:
        >>> without_suffix("runs/k400.v2").name, without_suffix("videos.safetensors").name
        ('k400.v2', 'videos')
    """
    path = Path(output)
    return path.with_suffix("") if path.suffix in SUFFIXES else path
