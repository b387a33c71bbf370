"""Compares modules: copies of each other differ in their weights only, so inspecting one of them is enough."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.tracing.packed import is_packed
from peft_aim.tracing.parts import is_dropout

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))


def traits(module: nn.Module) -> Hashable:
    """Return what copies of a module have in common: classes, attributes, shapes, and the content of buffers.

    Not compared are weights, how quantized weights are stored, the mode (training or evaluation), and the rates of
    dropout and drop path, as long as they are not 0. Attributes without a comparable value are equal only if they are
    the same object.

    Example:
        >>> traits(nn.MultiheadAttention(8, 2)) == traits(nn.MultiheadAttention(8, 2))
        True
        >>> traits(nn.MultiheadAttention(8, 2)) == traits(nn.MultiheadAttention(8, 4))
        False
    """
    return _with_parts(module, {part: _own_traits(part) for part in module.modules()})


def traits_of_all(model: nn.Module) -> dict[nn.Module, Hashable]:
    """Return the :func:`traits` of all modules of a model.

    Example:
        >>> found = traits_of_all(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()))
        >>> len(found), len({*found.values()})
        (4, 3)
    """
    own = {part: _own_traits(part) for part in model.modules()}
    return {module: _with_parts(module, own) for module in own}


def _with_parts(module: nn.Module, own: Mapping[nn.Module, tuple]) -> Hashable:
    return tuple((name, *own[part]) for name, part in module.named_modules())


def _own_traits(module: nn.Module) -> tuple:
    hooks = len(module._forward_pre_hooks), len(module._forward_hooks)
    if is_packed(module):
        return type(module), module.in_features, module.out_features, getattr(module, "bias", None) is None, *hooks
    attributes = {key: value for key, value in vars(module).items() if key not in OF_EVERY_MODULE}
    if is_dropout(module):  # rates often grow from block to block
        attributes = {key: value > 0 if isinstance(value, float) else value for key, value in attributes.items()}
    return (
        type(module),
        trait(attributes),
        tuple((name, p if p is None else _shape(p)) for name, p in module._parameters.items()),
        trait(dict(module._buffers)),
        *hooks,
    )


def trait(value: Any) -> Hashable:
    """Return a comparable, hashable form of an attribute or an argument.

    Example:
        >>> trait([1, {"a": None}]) == trait([1, {"a": None}]), trait(1) == trait(1.0), trait(object()) == trait(1)
        (True, False, False)
    """
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(trait, value))
    if isinstance(value, dict):
        return dict, tuple((str(key), trait(item)) for key, item in value.items())
    if isinstance(value, (set, frozenset)):
        return set, tuple(sorted(map(repr, value)))
    if isinstance(value, Tensor):
        return Tensor, *_shape(value), _content(value)
    if isinstance(value, MethodType):
        return MethodType, value.__func__
    if isinstance(value, partial):
        return partial, trait(value.func), trait(value.args), trait(value.keywords)
    return _Itself(value)


class _Itself:
    """An object that equals itself alone, and nothing after it is gone; it is not kept alive."""

    def __init__(self, value: Any) -> None:
        self._id = id(value)
        try:
            self._get = weakref.ref(value)
        except TypeError:  # some small objects cannot be referred to weakly
            self._get = lambda: value

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Itself) and None is not self._get() is other._get())

    def __hash__(self) -> int:
        return self._id


def _shape(tensor: Tensor) -> tuple:
    return tuple(tensor.shape), tensor.dtype, tensor.device.type


def _content(tensor: Tensor) -> int | None:
    if tensor.device.type == "meta":
        return None
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
    return hash(flat.view(torch.uint8).numpy().tobytes())
