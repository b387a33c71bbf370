"""What modules take and return: tensors, alone or in tuples, lists, dicts and ModelOutputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def first_argument(args: tuple, kwargs: dict[str, Any]) -> Any:
    """Return the first argument of a call, whether it was given by position or by keyword.

    Example:
        >>> first_argument((), {"hidden_states": 1, "mask": None})
        1
    """
    return args[0] if args else next(iter(kwargs.values()), None)


def with_first_argument(value: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of a call with another first one.

    Example:
        >>> with_first_argument(2, (), {"hidden_states": 1, "mask": None})
        ((), {'hidden_states': 2, 'mask': None})
    """
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): value})


def first_tensor(output: Any) -> Tensor:
    """Return the tensor that an output is, or starts with.

    Example:
        >>> import torch
        >>> first_tensor((torch.ones(1), None))
        tensor([1.])
    """
    return output[0] if isinstance(output, (tuple, list)) else output


def replace_first(output: Any, tensor: Tensor) -> Any:
    """Return the same kind of output with another first tensor.

    Example:
        >>> replace_first(("old", None), "new")
        ('new', None)
    """
    return type(output)((tensor, *output[1:])) if isinstance(output, (tuple, list)) else tensor


def map_tensors(function: Callable[[Tensor], Tensor], output: Any, without: list[Tensor]) -> Any:
    """Apply a function to every tensor of a nested output, keeping its types.

    Args:
        function: What to do with a tensor.
        output: The nested output; what is neither tensor nor container passes unchanged.
        without: Tensors to leave out of the tuples and lists that hold them, found by identity.

    Example:
        >>> map_tensors(lambda t: t, {"a": (1, [])}, without=[])
        {'a': (1, [])}
    """
    if isinstance(output, Tensor):
        return function(output)
    if isinstance(output, Mapping):
        return type(output)(**{key: map_tensors(function, value, without) for key, value in output.items()})
    if isinstance(output, (tuple, list)):
        kept = [item for item in output if not any(item is tensor for tensor in without)]
        items = [map_tensors(function, item, without) for item in kept]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    return output
