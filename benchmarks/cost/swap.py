"""What swapping adapters costs: switching between loaded ones, loading one from disk, and recompilation."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.cost.plan import Plan
from benchmarks.measuring.timing import timed
from benchmarks.methods import rivals
from peft_aim import hotswap_adapter

REPEATS = 9
WEIGHTS = "adapter_model.safetensors"


def swapping(plan: Plan) -> dict[str, Any]:
    """Return milliseconds, each the fastest of several tries, file sizes, and numbers of compilations."""
    model = plan.ready(rivals.aim(plan.model(), plan.classes, plan.frames)).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {}
        for dtype in (None, "float16", "bfloat16"):
            model.peft_config["default"].save_dtype = dtype
            model.save_pretrained(folder / str(dtype))
            sizes[dtype or "as trained"] = (folder / str(dtype) / WEIGHTS).stat().st_size
        saved = folder / "None"
        model.load_adapter(saved, "other")
        turn = iter(["other", "default"] * REPEATS)
        switch = least(lambda: model.set_adapter(next(turn)))
        read = least((saved / WEIGHTS).read_bytes)
        swap = least(lambda: hotswap_adapter(model, saved))
        names = iter(map(str, range(REPEATS)))
        load = least(lambda: model.load_adapter(saved, next(names)))
        compiled = compilations(plan, model, saved)
    return {
        "file_bytes": sizes,
        "set_adapter_ms": switch,
        "read_bytes_ms": read,
        "hotswap_ms": swap,
        "load_adapter_ms": load,
        "hotswap_over_reading": swap / read,
        **compiled,
    }


def least(way: Callable[[], object]) -> float:
    """Return the milliseconds of the fastest of several tries."""
    return 1e3 * min(timed(way) for _ in range(REPEATS))


@torch.no_grad()
def compilations(plan: Plan, model: nn.Module, saved: Path) -> dict[str, int]:
    """Count the graphs of the compiled model, and those that are compiled again for another adapter."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(1)
        return graph.forward

    torch.compiler.reset()
    model = copy.deepcopy(model)
    model.set_adapter("default")
    compiled, counts, clips = torch.compile(model, backend=backend), [], plan.clips()
    for change in (
        lambda: None,
        lambda: hotswap_adapter(model, saved),
        lambda: model.set_adapter("other"),
        lambda: model.set_adapter("default"),
    ):
        change()
        compiled(clips)
        counts.append(len(graphs))
    torch.compiler.reset()
    assert counts[0], "nothing was compiled"
    return {
        "graph_breaks": counts[0] - 1,
        "recompiled_by_hotswap": counts[1] - counts[0],
        "recompiled_by_set_adapter": counts[2] - counts[1],
        "recompiled_by_switching_back": counts[3] - counts[2],
    }
