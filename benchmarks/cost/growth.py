"""How the cost of AIM grows with frames, tokens, depth and loaded adapters, and with which exponent."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.cost.plan import Plan
from benchmarks.measuring.counting import cost_of_step
from benchmarks.measuring.timing import timed
from benchmarks.methods import rivals

Facts = dict[str, Any]


def growth(plan: Plan) -> dict[str, Facts]:
    """Return, for each quantity that is varied, the points and the fitted exponents."""
    found = {}
    for varied, values in plan.growth.items():
        points = [{varied: value, **point(plan, varied, value)} for value in values]
        counted = [name for name in points[0] if name not in (varied, "tokens")]
        along = "tokens" if "tokens" in points[0] else varied
        found[varied] = {
            "points": points,
            "exponents": {name: exponent([p[along] for p in points], [p[name] for p in points]) for name in counted},
        }
        print(varied, found[varied], flush=True)
    return found


def point(plan: Plan, varied: str, value: int) -> Facts:
    """Count the cost at one value."""
    if varied == "adapters":
        return adapters(plan, value)
    frames = value if varied == "frames" else plan.frames
    size = value if varied == "image size" else plan.size
    changes = {"image size": {"img_size": value}, "depth": {"depth": value}}.get(varied, {})
    model = plan.ready(rivals.aim(plan.model(**changes), plan.classes, frames))
    clips = plan.clips(frames, size)
    counts = cost_of_step(model, clips, lambda scores: scores.sum())
    recomputing = plan.ready(rivals.aim(plan.model(**changes), plan.classes, frames, recompute="block"))
    least = cost_of_step(recomputing, clips, lambda scores: scores.sum())["saved_mb"]
    tokens = {"tokens": model.base_model.model.patch_embed.num_patches + 1} if varied == "image size" else {}
    return {**tokens, **counts, "saved_mb_recomputing_blocks": least}


def adapters(plan: Plan, count: int) -> Facts:
    """Load several adapters and count the cost of one."""
    model = rivals.aim(plan.model(), plan.classes, plan.frames)
    for number in range(1, count):
        model.add_adapter(str(number), model.peft_config["default"])
    names = list(model.peft_config)
    seconds = min(timed(lambda name=name: model.set_adapter(name)) for name in [*names, *names, "default"])
    own = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if ".aim_" in name)
    counts = cost_of_step(plan.ready(model), plan.clips(), lambda scores: scores.sum())
    return {**counts, "adapters_mb": own / 1e6, "set_adapter_ms": 1e3 * seconds}


def exponent(xs: list[float], ys: list[float]) -> float:
    """Return the exponent p of the power law x^p that fits best.

    Example:
        >>> round(exponent([1, 2, 4], [3, 12, 48]), 3)
        2.0
    """
    xs, ys = ([math.log(value) for value in values] for values in (xs, ys))
    mean = sum(xs) / len(xs)
    return sum((x - mean) * y for x, y in zip(xs, ys, strict=True)) / sum((x - mean) ** 2 for x in xs)
