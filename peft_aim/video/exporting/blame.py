"""Names the module and the operator at which a model cannot be exported, from the traceback of the error."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from traceback import walk_tb
from types import FrameType

from torch import nn
from torch.fx import Node


class NotExportable(ValueError):  # noqa: N818 (a property of the model)
    """Raised if a model cannot be exported.

    Args:
        model: The model.
        error: What torch raised.
        action: What to do instead.
    """

    def __init__(self, model: nn.Module, error: BaseException, action: str) -> None:
        super().__init__(f"{type(model).__name__} cannot be exported. {where(model, error)}. {action}")


def where(model: nn.Module, error: BaseException) -> str:
    """Return at which module and operator an export failed, and why.

    Args:
        model: The model.
        error: What ``torch.export`` or ``torch.onnx`` raised.

    Returns:
        "module (class), operator: reason". The operator is one of torch's, or a line of the module's code.
    """
    *_, first = _causes(error)
    reason = re.sub(r"\x1b\[\d*m", "", str(first).strip()).partition("\n")[0].rstrip(".") or type(first).__name__
    frames = [frame for cause in _causes(error) for frame in reversed([f for f, _ in walk_tb(cause.__traceback__)])]
    nodes = (value for frame in frames for value in frame.f_locals.values() if isinstance(value, Node))
    node = next(nodes, None)
    place = _of_code(model, error, frames) if node is None else _of_node(node)
    return f"{place}: {reason}" if place else reason


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_node(node: Node) -> str:
    """Return the operator of a node and the module that it comes from."""
    calls = [*(node.meta.get("nn_module_stack") or {"": ("", "")}).values()]
    name, kind = calls[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    return f"{name or 'the model'} ({kind.rpartition('.')[2]}), {node.target}"


def _of_code(model: nn.Module, error: BaseException, frames: list[FrameType]) -> str:
    """Return the innermost module of the model that ran, and the line of its code."""
    names = {part: name for name, part in model.named_modules()}
    for cause in _causes(error):
        for frame, number in reversed([*walk_tb(cause.__traceback__)]):
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and module in names and frame.f_code.co_name != "_call_impl":
                line = linecache.getline(frame.f_code.co_filename, number).strip()
                return f"{names[module] or 'the model'} ({type(module).__name__}), in {line!r}"
    return ""
