"""Names the module and the operator at which a model cannot be exported, from the traceback of the error."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from traceback import walk_tb

from torch import nn
from torch.fx import Node


class NotExportable(ValueError):  # noqa: N818 (a property of the model)
    """Raised if a model cannot be exported."""


def not_exportable(model: nn.Module, error: BaseException, action: str) -> NotExportable:
    """Return the error to raise if a model cannot be exported.

    Args:
        model: The model.
        error: What ``torch.export`` or ``torch.onnx`` raised.
        action: What to do instead.

    Returns:
        An error that names the module and the operator: one of torch's, or a line of the module's code.
    """
    *_, first = _causes(error)
    place = _of_node(error) or _of_code(model, error)
    return NotExportable(f"The model cannot be exported: {place}{shortened(first)}. {action}.")


def shortened(error: BaseException) -> str:
    r"""Return the first line of an error's message, or its kind if it has none.

    Example:
        >>> shortened(ValueError("no.\nYes."))
        'no'
    """
    text = re.sub(r"\x1b\[\d*m", "", str(error).strip())  # torch colors its messages
    return text.partition("\n")[0].rstrip(".") or type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_node(error: BaseException) -> str:
    """Return the module and the operator of the node of a graph that could not be translated, "" if there is none."""
    for cause in _causes(error):
        for frame, _ in walk_tb(cause.__traceback__):
            node = frame.f_locals.get("node")
            if isinstance(node, Node) and node.op == "call_function":
                calls = [*(node.meta.get("nn_module_stack") or {"": ("", "")}).values()]
                name, kind = calls[-1]
                kind = kind if isinstance(kind, str) else kind.__name__
                return f"{_named(name, kind.rpartition('.')[2])}, operator {node.target}: "
    return ""


def _of_code(model: nn.Module, error: BaseException) -> str:
    """Return the innermost module of the model that ran, and the line of its code, "" if none did."""
    names = {part: name for name, part in model.named_modules()}
    for cause in _causes(error):
        for frame, number in reversed([*walk_tb(cause.__traceback__)]):
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and module in names and frame.f_code.co_name != "_call_impl":
                line = linecache.getline(frame.f_code.co_filename, number).strip()
                return f"{_named(names[module], type(module).__name__)}, line {line!r}: "
    return ""


def _named(name: str, kind: str) -> str:
    return f"{name} ({kind})" if name else kind
