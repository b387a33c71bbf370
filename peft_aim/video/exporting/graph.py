"""Graphs of models, by ``torch.export`` and ``torch.onnx``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from peft_aim.video.exporting.blame import not_exportable

OTHER_CODE = "Change this line so that torch.export takes it, or adapt another backbone"
OTHER_FORMAT = "Export it with --to pt2, or adapt another backbone"


def traced(model: nn.Module, inputs: tuple[Any, ...], dynamic: Any) -> ExportedProgram:
    """Return the graph of a model.

    Args:
        model: The model, in evaluation mode.
        inputs: Its arguments, for example.
        dynamic: Which of their axes are dynamic, ``dynamic_shapes`` of ``torch.export.export``.

    Raises:
        NotExportable: If the model's code cannot be traced, at which module and line.

    Example:
        >>> graph = traced(nn.Linear(2, 1), (torch.ones(3, 2),), ({0: torch.export.Dim.DYNAMIC},))
        >>> graph.module()(torch.ones(5, 2)).shape
        torch.Size([5, 1])
    """
    try:
        with torch.no_grad(), FourAxes(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the code of models and of torch
            return torch.export.export(model, inputs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # of many kinds, also by the model's own code
        raise not_exportable(model, error, OTHER_CODE) from error


class FourAxes(TorchFunctionMode):
    """Gives scaled dot product attention the four axes ``(B, heads, N, D)`` that the ONNX exporter knows."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, with other shapes."""
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
        first, mask = named["query"], named.get("attn_mask")
        leading = first.shape[:-3]
        if first.ndim == 4:
            return function(*args, **kwargs)
        if first.ndim == 3:
            given = {n: t.unsqueeze(0) if isinstance(t, Tensor) and t.ndim > 2 else t for n, t in named.items()}
            return function(**given).squeeze(0)
        for name in ("query", "key", "value"):
            named[name] = named[name].flatten(0, -4)
        if mask is not None and mask.ndim > 3:
            named["attn_mask"] = mask.expand(*leading, *mask.shape[-3:]).flatten(0, -4)
        return function(**named).unflatten(0, leading)


def to_onnx(model: nn.Module, graph: ExportedProgram) -> Any:
    """Translate a graph into an ``ONNXProgram``.

    Args:
        model: The model that the graph is of.
        graph: The graph.

    Raises:
        NotExportable: If ONNX lacks one of its operators, which one and in which module.
        ModuleNotFoundError: If onnxscript is not installed.
    """
    import onnxscript  # noqa: F401 (torch needs it, and without it raises another error)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(graph, dynamo=True, verbose=False)
    except Exception as error:
        raise not_exportable(model, error, OTHER_FORMAT) from error
