"""How often attributions are greatest where and when the event is, and what happens if frames change their order."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.explain.candidates import CANDIDATES
from benchmarks.explain.models import PATCH
from benchmarks.explain.videos import Drawn
from peft_aim.video.orders import orders

Facts = dict[str, Any]
HITS = ("cell", "frame", "place", "share")


def in_event(events: Tensor) -> Tensor:
    """Return which cells are in the event by more than half, ``(M, T, H, W) -> (M, T, h, w)``."""
    return F.avg_pool2d(events.float(), PATCH) > 0.5


def hits(cells: Tensor, event: Tensor) -> list[float]:
    """Return whether the greatest attribution is in the event, and the share of the event.

    Args:
        cells: Attributions, ``(T, h, w)``.
        event: Which cells are in the event, ``(T, h, w)``.

    Returns:
        1 or 0 for the greatest cell, the greatest frame, and the greatest place over all frames; and what part of all
        that speaks for the score is in the event.
    """
    positive = cells.clamp(min=0)
    best = event.flatten()[cells.argmax()]
    frame = event.any(-1).any(-1)[positive.sum((1, 2)).argmax()]
    place = event.any(0).flatten()[positive.sum(0).argmax()]
    return [float(hit) for hit in (best, frame, place, (positive * event).sum() / positive.sum())]


def chance(event: Tensor) -> list[float]:
    """Return what a random cell, frame and place would score on average, and equal attributions, ``(M, T, h, w)``."""
    parts = (event, event.any(-1).any(-1), event.any(1), event)
    return [float(part.float().mean()) for part in parts]


def explained(model: nn.Module, drawn: Drawn) -> list[Facts]:
    """Score all candidates, and chance, on the videos that the model classifies correctly."""
    with torch.no_grad():
        guesses = torch.cat([model(clip[None]) for clip in drawn.clips]).argmax(1)
    right, events = guesses == drawn.labels, in_event(drawn.events)
    rows = [{"row": "chance", **dict(zip(HITS, chance(events[right]), strict=True))}]
    for name, attribution in CANDIDATES.items():
        found = [
            hits(attribution(model, clip, int(label)), event)
            for clip, label, event in zip(drawn.clips[right], drawn.labels[right], events[right], strict=True)
        ]
        rows.append({"row": name, **dict(zip(HITS, torch.tensor(found).mean(0).tolist(), strict=True))})
        print(rows[-1], flush=True)
    return rows


def by_order(model: nn.Module, drawn: Drawn) -> dict[str, float]:
    """Return top-1 with the frames in each order, averaged over shuffles."""
    found = {}
    for order, indices in orders(drawn.clips.shape[1]).items():
        with torch.no_grad():
            guesses = torch.stack([model(drawn.clips[:, each]).argmax(1) for each in indices])
        found[order] = float((guesses == drawn.labels).float().mean())
    return found
