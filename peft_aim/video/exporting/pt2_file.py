"""Archives of ``torch.export``, which ``torch.export.load`` reads."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from peft_aim.video.exporting.clip_model import ClipModel

SUFFIX = ".pt2"
RUNS_IN = "torch.export.load"
EXTRA_FILE = "metadata.json"


def check_installed(precision: str, runs: bool) -> None:
    """Check that the packages that write such files are installed; torch runs them.

    Raises:
        ModuleNotFoundError: If one is not.
    """
    if precision == "int8":
        import torchao  # noqa: F401


def prepared(model: ClipModel, precision: str) -> ClipModel:
    """Return the model to trace: for int8 with quantized weights, for fp16 in half precision."""
    if precision == "fp16":
        return model.in_half_precision()
    if precision == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        model = copy.deepcopy(model)
        quantize_(model.model, Int8WeightOnlyConfig())
    return model


def save(model: ClipModel, graph: ExportedProgram, path: Path, facts: dict[str, Any]) -> None:
    """Write a graph and its metadata, as the extra file "metadata.json"."""
    torch.export.save(graph, path, extra_files={EXTRA_FILE: json.dumps(facts, ensure_ascii=False)})


def can_run() -> bool:
    """Whether files can be run: always, by torch."""
    return True


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs a file.

    Shape:
        uint8 ``(B, T, H, W, 3) -> (B, classes)``
    """
    return torch.no_grad()(torch.export.load(path).module())
