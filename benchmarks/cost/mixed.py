"""What a mixed batch costs: clips that each have an adapter of their own, against clips of a single adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.cost.plan import Plan
from benchmarks.measuring.counting import gmac
from benchmarks.measuring.timing import in_turns, ratio
from benchmarks.methods import rivals
from peft_aim import AIMConfig

Facts = dict[str, Any]
MOST_ADAPTERS = 8


@torch.no_grad()
def mixing(plan: Plan) -> list[Facts]:
    """Run a batch with one adapter, and with two and more, for equally many clips each.

    Returns:
        For each number of adapters, the arithmetic and the time of the batch, also relative to one adapter's, and the
        largest difference of the scores from those of one call per adapter.
    """
    clips = replace(plan, batch=MOST_ADAPTERS).clips()
    model = plan.ready(rivals.aim(plan.model(), plan.classes, plan.frames)).eval()
    for i in range(1, MOST_ADAPTERS):
        config = AIMConfig(num_frames=plan.frames, num_labels=plan.classes, init_weights=False)
        model.add_adapter(f"adapter{i}", config)
    names = list(model.peft_config)
    batches = {count: [names[row % count] for row in range(MOST_ADAPTERS)] for count in (1, 2, MOST_ADAPTERS)}
    ways = {count: lambda batch=batch: model(clips, adapter_names=batch) for count, batch in batches.items()}
    counted = {count: gmac(way) for count, way in ways.items()}
    seconds = in_turns(ways, plan.rounds)
    found = []
    for count, batch in batches.items():
        facts = {"adapters": count, "forward_gmac": counted[count], "seconds": seconds[count]}
        facts |= {"arithmetic_ratio": counted[count] / counted[1], "time_ratio": ratio(seconds[count], seconds[1])}
        mixed = ways[count]()
        found.append({**facts, "largest_difference": max(off(model, clips, mixed, batch, name) for name in names)})
        print(found[-1], flush=True)
    return found


def off(model: torch.nn.Module, clips: torch.Tensor, mixed: torch.Tensor, batch: list[str], name: str) -> float:
    """Return the largest difference of an adapter's scores in a mixed batch from those of a call of its own."""
    rows = [row for row, other in enumerate(batch) if other == name]
    if not rows:
        return 0.0
    model.set_adapter(name)
    return float((mixed[rows] - model(clips[rows])).abs().max())
