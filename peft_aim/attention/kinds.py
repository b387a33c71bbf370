"""Kinds of temporal attention that call the attention itself.

AIM runs a block's own frozen attention once more, over the frames of one spatial position, ``(B*N, T, D)``. Attentions
differ in how they have to be called for that; each way is a *kind*, a small callable ``kind(attention, x) -> output``.
The output is a tensor, or a tuple that starts with one. The first line of a kind's docstring describes it in tables
and errors. :class:`~peft_aim.attention.projected.Projected` is the kind that uses only an attention's projections.

Kinds call ``attention.forward``, not the attention: hooks on it (AIM's spatial adapter, recorders of attention maps)
are meant for its spatial call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.tracing import first_tensor

Kind = Callable[[nn.Module, Tensor], Any]

USERS_KINDS: dict[type, Kind] = {}


def along_time(attention_class: type[nn.Module]) -> Callable[[Kind], Kind]:
    """Register a function that runs an attention class of your own as temporal attention; a decorator.

    The function is checked on random tokens, as AIM's own kinds are: it has to be self-attention within each sequence,
    of any length, and independent of positions.

    Args:
        attention_class: The class. Functions registered for its base classes are not used.

    Shape:
        The function gets ``(attention, x)`` with x ``(B*N, T, D)``, and returns ``(B*N, T, D)``.

    Example:
        >>> class WithTemperature(nn.MultiheadAttention):
        ...     def forward(self, temperature, x):
        ...         return super().forward(x / temperature, x, x)[0]
        >>> @along_time(WithTemperature)
        ... def at_temperature_one(attention, x):
        ...     return attention.forward(1.0, x)
    """

    def register(kind: Kind) -> Kind:
        USERS_KINDS[attention_class] = kind
        return kind

    return register


def in_words(kind: Kind) -> str:
    """Describe a kind by the first line of its docstring, or by its name if it is a user's and has none.

    Example:
        >>> in_words(plain)
        'its own forward on the tokens alone'
    """
    line = (inspect.getdoc(kind) or f"your function {kind.__name__}").partition("\n")[0]
    return line.rstrip(".")


def plain(attention: nn.Module, x: Tensor) -> Any:
    """its own forward on the tokens alone"""  # noqa: D403, D415 (a phrase, for tables)
    return attention.forward(x)  # without the optional spatial masks, biases and rotary embeddings


def sequence_first(attention: nn.Module, x: Tensor) -> Tensor:
    """its own forward on the tokens alone, with the sequence first"""  # noqa: D403, D415
    return first_tensor(attention.forward(x.transpose(0, 1))).transpose(0, 1)


def multihead(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """its own forward with query, key and value"""  # noqa: D403, D415
    x = x if attention.batch_first else x.transpose(0, 1)
    recorded = off_the_fast_path(attention, x)
    mixed = attention.forward(recorded, recorded, recorded, need_weights=False)[0]
    mixed = mixed if recorded is x else mixed.detach()
    return mixed if attention.batch_first else mixed.transpose(0, 1)


def off_the_fast_path(attention: nn.MultiheadAttention, query: Tensor) -> Tensor:
    """Keep torch's own attention off the fast path that it takes in evaluation mode if nothing requires gradients.

    The fast path rounds differently: an adapter loaded for inference would not reproduce its scores in training.

    Returns:
        The query, or a copy that requires gradients if nothing else does.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return query
    if query.requires_grad or any(parameter.requires_grad for parameter in attention.parameters()):
        return query
    try:
        return query.detach().requires_grad_()
    except RuntimeError:  # in a transform of torch.func, where nothing can; then, it only rounds differently
        return query


@dataclass(frozen=True)
class OnGrid:
    """its own forward on a grid with one row, whose columns are the frames

    For attentions that take images, ``(B, H, W, D)`` or ``(B, D, H, W)``.

    Args:
        channels: Axis of the channels, -1 or 1.
    """  # noqa: D415

    channels: int

    def __call__(self, attention: nn.Module, x: Tensor) -> Tensor:
        """Run over time, ``(B*N, T, D) -> (B*N, T, D)``."""
        if self.channels == -1:
            return first_tensor(attention.forward(x.unsqueeze(1))).squeeze(1)
        return first_tensor(attention.forward(x.mT.unsqueeze(2))).squeeze(2).mT


@dataclass(frozen=True)
class Unrotated:
    """its own forward with a neutral rotary embedding, cos = 1 and sin = 0

    For attentions that require a rotary embedding.

    Args:
        arguments: Name of the argument that takes ``(cos, sin)``, or names of the two that take one each.
        width: Size of the last axis of cos and sin.
        axes: Number of axes of cos and sin: two for ``(T, width)``, three for ``(1, T, width)``.
    """  # noqa: D415

    arguments: tuple[str, ...]
    width: int
    axes: int = 2

    def __call__(self, attention: nn.Module, x: Tensor) -> Any:
        """Run over time, ``(B*N, T, D) -> (B*N, T, D)``."""
        cos = x.new_ones(*[1] * (self.axes - 2), x.shape[1], self.width)
        pair = (cos, torch.zeros_like(cos))
        rotation = {self.arguments[0]: pair} if len(self.arguments) == 1 else dict(zip(self.arguments, pair))  # noqa: B905
        return attention.forward(x, **rotation)
