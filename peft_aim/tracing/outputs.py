"""Reads and changes the arguments and outputs of modules: tensors, tuples, lists, dicts and ModelOutputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

Images = Mapping[str, Tensor]  # a model's arguments for images, by name; the images come first


def run(model: nn.Module, images: Images) -> Any:
    """Call a model on images.

    Example:
        >>> import torch
        >>> run(nn.Identity(), {"input": torch.ones(1)})
        tensor([1.])
    """
    first, *further = images
    return model(images[first], **{name: images[name] for name in further})


def first_parameter(module: nn.Module) -> str:
    """Return the name of the first parameter of a module's forward, "" if it takes none.

    Example:
        >>> first_parameter(nn.Linear(1, 1))
        'input'
    """
    return next(iter(inspect.signature(module.forward).parameters), "")


def named_arguments(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by the names of the parameters of the module's forward.

    Example:
        >>> named_arguments(nn.Bilinear(1, 1, 1), (1,), {"input2": 2})
        {'input1': 1, 'input2': 2}
    """
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def first_argument(name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Return the first argument of a call, given by position or by name.

    Example:
        >>> first_argument("pixel_values", (), {"labels": 1, "pixel_values": 2})
        2
    """
    return args[0] if args else kwargs.get(name)


def with_first_argument(value: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of a call with the first one replaced.

    Example:
        >>> with_first_argument(3, "pixel_values", (), {"labels": 1, "pixel_values": 2})
        ((), {'labels': 1, 'pixel_values': 3})
    """
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, name: value})


def with_tokens(tokens: Tensor, name: str, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of a call with the first one replaced, wherever it is given: attention(x, x, x).

    Example:
        >>> with_tokens("new", "query", ("x", "x"), {"value": "x", "need_weights": False})
        (('new', 'new'), {'value': 'new', 'need_weights': False})
    """
    before = first_argument(name, args, kwargs)
    args = tuple(tokens if value is before else value for value in args)
    return args, {key: tokens if value is before else value for key, value in kwargs.items()}


def first_tensor(output: Any) -> Tensor:
    """Return an output's first tensor: the output itself, or the first item of a tuple.

    Example:
        >>> import torch
        >>> first_tensor((torch.ones(1), None))
        tensor([1.])
    """
    return output[0] if isinstance(output, (tuple, list)) and output else output


def tokens_given(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """Return the first tensor of the first argument of a module's call.

    Example:
        >>> import torch
        >>> tokens_given(nn.Identity(), ((torch.ones(1), None),), {})
        tensor([1.])
    """
    return first_tensor(first_argument(first_parameter(module), args, kwargs))


def replace_first(output: Any, tensor: Tensor) -> Any:
    """Return an output of the same type with the first tensor replaced.

    Example:
        >>> replace_first(("old", None), "new")
        ('new', None)
    """
    if not isinstance(output, (tuple, list)):
        return tensor
    return getattr(type(output), "_make", type(output))((tensor, *output[1:]))


def map_tensors(function: Callable[[Tensor], Tensor], output: Any) -> Any:
    """Apply a function to every tensor of a nested output, keeping its types.

    Args:
        function: What to do with a tensor.
        output: The nested output; anything that is neither a tensor nor a container stays as it is.

    Example:
        >>> map_tensors(lambda t: t, {"a": (1, [])})
        {'a': (1, [])}
    """
    if isinstance(output, Tensor):
        return function(output)
    if isinstance(output, Mapping):
        return type(output)(**{key: map_tensors(function, value) for key, value in output.items()})
    if isinstance(output, (tuple, list)):
        items = [map_tensors(function, item) for item in output]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    return output


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Iterate over the tensors of a nested output.

    Example:
        >>> import torch
        >>> list(tensors_in({"a": (torch.ones(1), None)}))
        [tensor([1.])]
    """
    found: list[Tensor] = []
    map_tensors(found.append, output)
    return iter(found)
