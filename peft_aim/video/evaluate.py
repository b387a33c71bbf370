"""Evaluate an adapter on labeled videos, with a single view per video and averaged over several clips and crops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peft_aim.files import write_atomically
from peft_aim.video.adapters import load_adapters
from peft_aim.video.backbones import Source
from peft_aim.video.data import (
    IGNORED,
    EvaluationClips,
    Remarked,
    Remarks,
    Sample,
    VideoSource,
    by_index,
    indexed,
    notes_on_evaluation,
    read_labels,
    target_of,
)
from peft_aim.video.description import Description
from peft_aim.video.finite import NotFinite, why_not_finite
from peft_aim.video.metrics import AnyMetrics, Metrics, metrics_of
from peft_aim.video.orders import REVERSED, SHUFFLED, reordered
from peft_aim.video.output import check_writable, printed_if_lost
from peft_aim.video.over_videos import in_batches, over_videos
from peft_aim.video.picture import draw_confusion
from peft_aim.video.problem_type import REGRESSION, SINGLE_LABEL, values_of
from peft_aim.video.processes import once, processes, say


class NothingToEvaluate(ValueError):  # noqa: N818 (only the videos are at fault)
    """Raised if none of the videos can be read.

    Args:
        count: Number of videos.
        remarks: Why they cannot be read.
    """

    def __init__(self, count: int, remarks: Remarks) -> None:
        super().__init__(f"None of the {count} evaluation videos can be read. {remarks.skipped[0]}")
        self.remarks = remarks


@dataclass(frozen=True)
class Evaluation(Remarked):
    """Results of an evaluation.

    Attributes:
        views: Results by views (clips x crops): "1x1", and "3x1" for example if more views were averaged.
        remarks: What was noticed about the videos.
        notes: What limits the results, such as videos that are also in the train split.
        orders: Results of a single view with its frames "shuffled" and "reversed", if that was tested.
    """

    views: dict[str, AnyMetrics]
    remarks: Remarks = field(default_factory=Remarks)
    notes: list[str] = field(default_factory=list)
    orders: dict[str, AnyMetrics] = field(default_factory=dict)

    @property
    def best(self) -> AnyMetrics:
        """Results with all views."""
        return list(self.views.values())[-1]

    @property
    def videos(self) -> int:
        """Number of videos evaluated."""
        return self.best.videos

    @property
    def files(self) -> list[str]:
        """Names of the files that it is written to."""
        return ["evaluation.json"] + ["confusion.png"] * isinstance(self.best, Metrics)

    def summary(self) -> dict[str, Any]:
        """Return the numbers that are saved with an adapter."""
        rows, orders = (
            {name: metrics.summary for name, metrics in found.items()} for found in (self.views, self.orders)
        )
        found = {"videos": self.videos, "skipped": len(self.skipped), "views": rows}
        return {**found, "orders": orders} if orders else found

    def __str__(self) -> str:
        lines = [f"{views.replace('x', ' x '):7} {metrics.line}" for views, metrics in self.views.items()]
        lines += [f"1 x 1, frames {order}: {metrics.line}" for order, metrics in self.orders.items()]
        head = f"{self.videos} videos evaluated, {len(self.skipped)} skipped. Results by views (clips x crops):"
        notes = [f"Note: {note}" for note in self.notes]
        videos = [f"  skipped: {reason}" for reason in self.skipped] + [f"  damaged: {what}" for what in self.damaged]
        return "\n".join([head, *lines, "", self.best.table(), *notes, *videos])


def evaluate(
    adapter: str | Path,
    videos: str | Path,
    output: str | Path,
    split: str = "val",
    root: str | Path | None = None,
    views: tuple[int, int] | None = None,
    batch_size: int = 8,
    workers: int = 1,
    min_frames: int | None = None,
    source: Source | None = None,
) -> Evaluation:
    """Evaluate a saved adapter on videos.

    Args:
        adapter: Folder or Hub id of the adapter.
        videos: A folder, list or table of videos, see :func:`peft_aim.video.data.listing.find_videos`.
        output: Folder for ``evaluation.json`` (metrics, also by class, and the confusion matrix) and, for one class
            per video, ``confusion.png``.
        split: Split of the folder or table to evaluate on.
        root: Folder that the paths in a list or table are relative to.
        views: Clips per video and crops per frame; None uses those recorded in the adapter.
        batch_size: Views per forward pass.
        workers: Processes that load videos.
        min_frames: Videos with fewer frames are skipped; None uses the minimum of the training recipe.
        source: Where to load the backbone from; None uses the source recorded in the adapter.

    Raises:
        ValueError: If the adapter, the backbone or the videos cannot be found or loaded, no video can be read, scores
            are NaN or infinite, or ``output`` cannot be written to.
        OSError: If the results cannot be written; they are then printed.
    """
    once(partial(check_writable, Path(output)))
    if batch_size < 1:
        raise ValueError(
            f"batch_size={batch_size} is not positive. Give the number of views per forward pass, 1 or more."
        )
    loaded = load_adapters([str(adapter)], source)
    description = loaded.descriptions[0]
    if min_frames is None:
        min_frames = (description.recipe or {}).get("min_frames", 1)
    listed = VideoSource(videos, root)
    listing = listed.listing(split)
    kind = description.problem_type
    say(listing.summary(split, "number" if kind == REGRESSION else "class"))
    found = read_labels(listing, kind)
    notes = notes_on_evaluation(found, listed, split)
    for note in notes:
        say(f"Note: {note}")
    if kind != REGRESSION and by_index(found, description.classes):
        say(f"Note: numeric labels are read as the adapter's class indices, {dict(enumerate(description.classes))}.")
    labeled = indexed(found, description.classes, problem_type=kind)
    result = evaluate_model(loaded.model, description, labeled, views, batch_size, workers, min_frames)
    result = replace(result, notes=notes + result.remarks.notes())
    if processes().is_main_process:
        with printed_if_lost(result, output):
            write(result, Path(output))
    return result


def evaluate_model(
    model: nn.Module,
    description: Description,
    videos: Sequence[Sample],
    views: tuple[int, int] | None = None,
    batch_size: int = 8,
    workers: int = 1,
    min_frames: int = 1,
    in_orders: bool = False,
) -> Evaluation:
    """Evaluate an adapted model, on all processes that accelerate has launched.

    Args:
        model: The model, with the adapter active.
        description: Description of the adapter.
        videos: The videos, see :func:`peft_aim.video.data.indexed`.
        views: Clips per video and crops per frame; None uses those of the description.
        batch_size: Views per forward pass.
        workers: Processes that load videos.
        min_frames: Videos with fewer frames are skipped.
        in_orders: Whether to test what a single view scores with its frames in other orders.

    Raises:
        NothingToEvaluate: If no video can be read.
        NotFinite: If scores are NaN or infinite.
    """
    views = views or description.views
    clips = EvaluationClips(videos, description.views_with(*views), min_frames, description.fps)

    def results(batch: dict[str, Any]) -> Tensor:
        every = values(model, batch["clips"].flatten(0, 1), batch_size, description.problem_type)
        every = every.unflatten(0, (-1, clips.total))
        row = torch.stack([every[:, clips.single], every[:, : clips.count].mean(1)], dim=1)  # (videos, 2, classes)
        if in_orders:
            others = reordered(batch["clips"][:, clips.single], batch["index"].tolist())
            more = [values(model, other, batch_size, description.problem_type) for other in others.values()]
            row = torch.cat([row, *(of_order[:, None] for of_order in more)], dim=1)
        return row

    *found, seen = over_videos(model, clips, results, batch_size, workers, "Evaluating")
    found, labels, indices = (column.numpy() for column in found)
    readable = labels != IGNORED
    if not readable.any():
        raise NothingToEvaluate(len(videos), seen)
    kind, classes = description.problem_type, description.classes
    if kind not in (None, SINGLE_LABEL):
        labels = np.stack([target_of(videos[i].label, len(classes)).numpy() for i in indices])
    single, averaged, *orders = (
        metrics_of(kind).of(of_views[readable], labels[readable], classes) for of_views in found.swapaxes(0, 1)
    )
    names = (SHUFFLED, REVERSED)[: len(orders)]
    views = {"1x1": single, f"{views[0]}x{views[1]}": averaged}
    return Evaluation(views, seen, orders=dict(zip(names, orders, strict=True)))


def score(model: nn.Module, clips: Tensor, batch_size: int, problem_type: str | None = None) -> Tensor:
    """Return the probabilities or numbers that a model predicts for clips, see :func:`values`, and check them.

    Raises:
        NotFinite: If scores are NaN or infinite.
    """
    found = values(model, clips, batch_size, problem_type)
    wrong = found.isnan().any(-1)
    if wrong.any():
        raise NotFinite(why_not_finite(f"{int(wrong.sum())} of {len(wrong)} clips", model))
    return found


def values(model: nn.Module, clips: Tensor, batch_size: int, problem_type: str | None = None) -> Tensor:
    """Return the probabilities or numbers predicted for clips; NaN for a clip with scores that are NaN or infinite.

    Args:
        model: The model, with the adapter active.
        clips: The clips.
        batch_size: Clips per forward pass.
        problem_type: What the scores mean, see :func:`peft_aim.video.problem_type.values_of`.

    Shape:
        ``(V, T, 3, H, W) -> (V, C)``
    """
    scores = in_batches(model, lambda batch: scores_of(model(batch)), clips, batch_size)
    found = values_of(scores.float(), problem_type)
    return found.where(scores.isfinite().all(-1, keepdim=True), torch.nan)


def scores_of(output: Any) -> Tensor:
    """Return the class scores ``(B, classes)`` in a model's output: the output itself, or its first element.

    Raises:
        ValueError: If they have another shape.
    """
    scores = output if isinstance(output, Tensor) else output[0]
    if scores.ndim != 2:
        raise ValueError(
            f"The model's first output has the shape {tuple(scores.shape)}, but class scores (B, classes) are "
            "needed. Use the model's image classification variant."
        )
    return scores


def write(result: Evaluation, folder: Path) -> None:
    """Write an evaluation to ``evaluation.json`` and, for one class per video, ``confusion.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "videos": result.videos,
        "skipped": result.skipped,
        "damaged": result.damaged,
        "notes": result.notes,
        "views": {views: asdict(metrics) for views, metrics in result.views.items()},
    }
    if result.orders:
        facts["orders"] = {order: asdict(metrics) for order, metrics in result.orders.items()}
    write_atomically(folder / "evaluation.json", json.dumps(facts, indent=2))
    if "confusion.png" in result.files:
        draw_confusion(folder / "confusion.png", result.best)
