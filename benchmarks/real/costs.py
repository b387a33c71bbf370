"""What a training step of each row costs: parameters, file, activations and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring.counting import cost_of_step, loss
from benchmarks.measuring.timing import in_turns, ratio
from benchmarks.methods.rivals import trained_parameters
from benchmarks.real.rows import AIM, FRAMES, Row, backbone
from benchmarks.real.trial import Plan

CLASSES, ROUNDS = 8, 3


def costs(rows: tuple[Row, ...], plan: Plan, data: Path, device: str) -> list[dict[str, Any]]:
    """Return the costs of rows, activations and times as ratios to AIM's, which has to be among them."""
    clips = torch.randn(plan.batch, FRAMES, 3, plan.size, plan.size, device=device)
    found, steps = [], {}
    for row in rows:
        model = row.build(backbone(data, plan.size)[0], CLASSES).train().to(device)
        counted = cost_of_step(model, clips, loss)
        count = trained_parameters(model)
        facts = {"row": row.name, "parameters": count, "file_bytes": 4 * count, "saved_mb": counted["saved_mb"]}
        found.append(facts)
        steps[row.name] = lambda model=model: loss(model(clips)).backward()
    seconds = in_turns(steps, ROUNDS)
    own = next(facts for facts in found if facts["row"] == AIM.name)["saved_mb"]
    for facts in found:
        facts["activations"] = facts["saved_mb"] / own
        facts["time"] = ratio(seconds[facts["row"]], seconds[AIM.name])
    return found
