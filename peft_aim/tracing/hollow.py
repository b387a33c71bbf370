"""Runs a model without its arithmetic: control flow, hooks and autograd's graph are real, values are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from peft_aim.tracing.outputs import first_tensor, map_tensors, replace_first, tensors_in
from peft_aim.tracing.parts import MIXERS
from peft_aim.tracing.stand_ins import standing_in

aten = torch.ops.aten


def _attention_on_cpu(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_zeros(*q.shape[:-1], v.shape[-1]), q.new_zeros(q.shape[:-1])


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list,
    padding: list,
    dilation: list,
    transposed: bool,
    *_: Any,
) -> Tensor | None:
    if transposed:  # rare in image models
        return None
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    sizes = [(n + 2 * pad - d * (kernel - 1) - 1) // step + 1 for n, kernel, step, pad, d in axes]
    return x.new_zeros(x.shape[0], weight.shape[0], *sizes)


ZEROS: dict[Any, Callable[..., Any]] = {
    aten.mm.default: lambda a, b: a.new_zeros(a.shape[0], b.shape[1]),
    aten.addmm.default: lambda bias, a, b, *_: a.new_zeros(a.shape[0], b.shape[1]),
    aten.bmm.default: lambda a, b: a.new_zeros(*a.shape[:2], b.shape[2]),
    aten.baddbmm.default: lambda bias, a, b, *_: a.new_zeros(*a.shape[:2], b.shape[2]),
    aten.convolution.default: _convolution,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention_on_cpu,
}


def _rows(tensor: Tensor) -> Tensor:
    return tensor.isnan().any(-1, keepdim=True)


def _columns(tensor: Tensor) -> Tensor:
    return tensor.isnan().any(-2, keepdim=True)


def _marks_of_attention(q: Tensor, k: Tensor, v: Tensor, p: float = 0.0, causal: bool = False) -> Tensor | None:
    return None if causal else _rows(q) | _rows(k).any(-2, keepdim=True) | _columns(v)


MARKS: dict[Any, Callable[..., Tensor | None]] = {
    aten.mm.default: lambda a, b: _rows(a) | _columns(b),
    aten.addmm.default: lambda bias, a, b, *_: bias.isnan() | _rows(a) | _columns(b),
    aten.bmm.default: lambda a, b: _rows(a) | _columns(b),
    aten.baddbmm.default: lambda bias, a, b, *_: bias.isnan() | _rows(a) | _columns(b),
    aten._scaled_dot_product_flash_attention_for_cpu.default: _marks_of_attention,
}


def _marked(func: Any, *args: Any) -> Any:
    """Return ones with NaN where the product of these factors has NaN."""
    marks = MARKS[func](*args) if func in MARKS else None
    if marks is None:
        return None
    zeros = ZEROS[func](*args)
    return replace_first(zeros, (first_tensor(zeros) + 1).masked_fill(marks, torch.nan))


class _Products(TorchDispatchMode):
    """Products of plain tensors are replaced; other operations, and those of quantized or sharded tensors, run."""

    def __init__(self, instead: Callable[..., Any]) -> None:
        super().__init__()
        self._instead = instead

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        plain = all(type(t) in (Tensor, nn.Parameter) and not t.is_meta for t in args if isinstance(t, Tensor))
        result = self._instead(func, *args) if func in ZEROS and plain else None
        return func(*args, **(kwargs or {})) if result is None else result


@contextmanager
def without_arithmetic(model: nn.Module) -> Iterator[None]:
    """Run a model without arithmetic: products return zeros, and so do layers :func:`without_weights`.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> with without_arithmetic(layer):
        ...     layer(torch.ones(1, 2)).tolist()
        [[0.0, 0.0, 0.0]]
    """
    with without_weights(model.modules()), _Products(lambda func, *args: ZEROS[func](*args)):
        yield


@contextmanager
def passing_marks() -> Iterator[None]:
    """Run something with ones as its products, without arithmetic, but with NaN wherever a product has NaN.

    Example:
        >>> with passing_marks():
        ...     (torch.tensor([[torch.nan, 0.0], [2.0, 3.0]]) @ torch.zeros(2, 2)).tolist()
        [[nan, nan], [1.0, 1.0]]
    """
    with _Products(_marked):
        yield


@contextmanager
def without_weights(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let layers whose weights are on the device "meta" return zeros that depend on their input.

    If the weights are offloaded, they are not loaded then.
    """
    layers = [m for m in modules if isinstance(m, MIXERS) or not any(True for _ in m.children())]
    empty = [layer for layer in layers if any(parameter.is_meta for parameter in layer.parameters())]
    with standing_in({layer: partial(_zeros, layer) for layer in empty}):
        yield


def _zeros(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Return zeros in the form of a layer's output that depend on its input, as autograd records it."""
    given = [tensor for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()]
    args, kwargs = map_tensors(lambda t: t.detach().to("meta"), (args, kwargs))
    with torch.no_grad():
        shapes = type(module).forward(module, *args, **kwargs)
    link = 0 * sum(tensor.sum() for tensor in given)
    return map_tensors(
        lambda t: torch.zeros(t.shape, dtype=t.dtype, device=given[0].device) + link.to(t.dtype), shapes
    )
