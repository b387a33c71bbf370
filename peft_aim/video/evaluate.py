"""Evaluates an adapter on labelled videos: one view of each, and the average over several clips and crops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from peft_aim.video.adapters import load_adapters
from peft_aim.video.backbones import Source
from peft_aim.video.data import IGNORED, EvaluationClips, by_index, find_videos, indexed
from peft_aim.video.description import Description
from peft_aim.video.metrics import Metrics
from peft_aim.video.picture import draw_confusion
from peft_aim.video.processes import gather, on_cpu, processes, say


class NothingToEvaluate(ValueError):  # noqa: N818 (nothing is wrong but the videos)
    """Raised if no video can be read."""


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation.

    Attributes:
        views: Results by number of views, "1x1" and, if more were averaged, "3x1", say: clips per video x crops.
        skipped: Reasons why videos could not be read.
    """

    views: dict[str, Metrics]
    skipped: list[str]

    @property
    def best(self) -> Metrics:
        """The results with all views."""
        return list(self.views.values())[-1]

    @property
    def videos(self) -> int:
        """Number of videos evaluated."""
        return self.best.videos

    def summary(self) -> dict[str, Any]:
        """Return the numbers that are kept with an adapter."""
        rows = {
            views: {"top1": m.top1, "interval": m.interval, "top5": m.top5, "mean_class": m.mean_class}
            for views, m in self.views.items()
        }
        return {"videos": self.videos, "skipped": len(self.skipped), "views": rows}

    def __str__(self) -> str:
        lines = [f"{views.replace('x', ' x '):7} {metrics.line}" for views, metrics in self.views.items()]
        head = f"{self.videos} videos evaluated, {len(self.skipped)} skipped; clips x crops:"
        skipped = [f"  skipped: {reason}" for reason in self.skipped]
        return "\n".join([head, *lines, "", self.best.table(), *skipped])


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
        adapter: Its folder or Hub id.
        videos: A folder, list or table of videos, see :func:`peft_aim.video.data.listing.find_videos`.
        output: Folder for ``evaluation.json``, with the confusion matrix and a table of the classes, and
            ``confusion.png``.
        split: Which part of a folder or table.
        root: Where the paths in a list begin.
        views: Clips per video and crops per frame; by default those that the adapter names.
        batch_size: Views that the model takes at a time.
        workers: Processes that read videos.
        min_frames: Videos of fewer frames are skipped; by default as in its training.
        source: Where to load the backbone from, if not from where the adapter says.

    Raises:
        ValueError: If adapter, backbone or videos cannot be had, or if no video can be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is no number of views. Give 1 or more.")
    loaded = load_adapters([str(adapter)], source)
    description = loaded.descriptions[0]
    if min_frames is None:
        min_frames = (description.recipe or {}).get("min_frames", 1)
    found = find_videos(videos, split, root)
    if by_index(found, description.classes):
        say(f"Note: labels are taken for the adapter's own indices, {dict(enumerate(description.classes))}.")
    labelled = indexed(found, description.classes)
    result = evaluate_model(loaded.model, description, labelled, views, batch_size, workers, min_frames)
    if processes().is_main_process:
        write(result, Path(output))
    return result


def evaluate_model(
    model: nn.Module,
    description: Description,
    videos: Sequence[tuple[Path, int]],
    views: tuple[int, int] | None = None,
    batch_size: int = 8,
    workers: int = 1,
    min_frames: int = 1,
) -> Evaluation:
    """Evaluate an adapted model, with accelerate on all processes that there are.

    Args:
        model: The model, with the adapter active.
        description: What the adapter says of itself.
        videos: The videos with the indices of their classes.
        views: Clips per video and crops per frame; by default those that the adapter names.
        batch_size: Views that the model takes at a time.
        workers: Processes that read videos.
        min_frames: Videos of fewer frames are skipped.

    Raises:
        NothingToEvaluate: If no video can be read.
    """
    accelerator, views = Accelerator(cpu=on_cpu()), views or description.views
    clips = EvaluationClips(
        videos, description.frames, description.stride, views, description.preprocessing, min_frames
    )
    loader = accelerator.prepare(DataLoader(clips, batch_size=1, num_workers=workers))
    model.to(accelerator.device).eval()
    rows, skipped = [], {}
    for batch in tqdm(loader, "Evaluating", unit="video", leave=False, disable=not accelerator.is_main_process):
        reason = batch.pop("skipped")[0]
        skipped |= {reason: None} if reason else {}
        every = score(model, batch["clips"][0], batch_size)  # (V, classes)
        row = torch.stack([every[clips.single], every[: clips.count].mean(0)])[None]  # (1, 2, classes)
        rows.append(accelerator.gather_for_metrics((row, batch["labels"])))
    found, labels = (torch.cat(column).cpu().numpy() for column in zip(*rows, strict=True))
    reasons, readable = gather(skipped), labels != IGNORED
    if not readable.any():
        raise NothingToEvaluate(f"None of the {len(videos)} videos to evaluate on can be read. {reasons[0]}")
    single, averaged = (
        Metrics.of(probabilities[readable], labels[readable], description.classes)
        for probabilities in (found[:, 0], found[:, 1])
    )
    return Evaluation({"1x1": single, f"{views[0]}x{views[1]}": averaged}, reasons)


@torch.no_grad()
def score(model: nn.Module, clips: Tensor, batch_size: int) -> Tensor:
    """Return the probabilities of the classes, computed in chunks, ``(V, T, 3, H, W) -> (V, classes)``."""
    device = next(model.parameters()).device
    chunks = [scores_of(model(chunk.to(device))) for chunk in clips.split(batch_size)]
    return torch.cat(chunks).float().softmax(-1)


def scores_of(output: Any) -> Tensor:
    """Return the class scores of any library's output, ``(B, classes)``.

    Raises:
        ValueError: If its first tensor is something else.
    """
    scores = output if isinstance(output, Tensor) else output[0]
    if scores.ndim != 2:
        raise ValueError(
            f"The model returned {tuple(scores.shape)} first, which are no scores (B, classes). Use the model's "
            "variant for image classification."
        )
    return scores


def write(result: Evaluation, folder: Path) -> None:
    """Write an evaluation to ``evaluation.json`` and ``confusion.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"videos": result.videos, "skipped": result.skipped}
    views = {name: asdict(metrics) for name, metrics in result.views.items()}
    (folder / "evaluation.json").write_text(json.dumps({**facts, "views": views}, indent=2))
    draw_confusion(folder / "confusion.png", result.best)
