"""One pass over videos: what a model computes for each of them, on all processes that accelerate has launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from peft_aim.video.data import EvaluationClips, Remarks
from peft_aim.video.finite import NotFinite, why_not_finite
from peft_aim.video.processes import gather, on_cpu


def over_videos(
    model: nn.Module,
    clips: EvaluationClips,
    results: Callable[[dict[str, Any]], Tensor],
    batch_size: int,
    workers: int,
    title: str,
    numbers: str = "class scores",
) -> tuple[Tensor, Tensor, Tensor, Remarks]:
    """Return the results, labels and positions of all videos, the same on all processes, and the remarks on them.

    Args:
        model: The model.
        clips: The views of each video.
        results: Returns the results of a batch of videos, ``(videos, *)``.
        batch_size: Views per forward pass.
        workers: Processes that load videos.
        title: What is done, for the progress bar.
        numbers: What the results are, for errors.

    Raises:
        NotFinite: If results are NaN or infinite.
    """
    accelerator = Accelerator(cpu=on_cpu())
    together = max(1, batch_size // clips.total)  # videos per forward pass
    loader = accelerator.prepare(DataLoader(clips, batch_size=together, num_workers=workers))
    model.to(accelerator.device).eval()
    rows, seen = [], Remarks()
    for batch in tqdm(loader, title, leave=False, disable=not accelerator.is_main_process):
        paths = batch["path"]
        seen.take(batch)
        row = results(batch)
        rows.append(accelerator.gather_for_metrics((row, batch["labels"], batch["index"])))
        if not rows[-1][0].isfinite().all():  # on all processes alike: none is left waiting for the others
            wrong = gather(path for path, of_video in zip(paths, row, strict=True) if not of_video.isfinite().all())
            what = f"{len(wrong)} of {len(rows[-1][0])} videos, {wrong[0]} for example,"
            raise NotFinite(why_not_finite(what, model, numbers))
    found, labels, indices = (torch.cat(column).cpu() for column in zip(*rows, strict=True))
    return found, labels, indices, seen.gathered()


@torch.no_grad()
def in_batches(model: nn.Module, run: Callable[[Tensor], Tensor], clips: Tensor, batch_size: int) -> Tensor:
    """Run clips in batches on the device of a model, ``(V, T, 3, H, W) -> (V, *)``."""
    device = next(model.parameters()).device
    return torch.cat([run(chunk.to(device)) for chunk in clips.split(batch_size)])
