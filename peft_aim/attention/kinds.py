"""How a frozen attention is called along time.

AIM runs a block's own attention once more, over the frames of one place, ``(B*N, T, D)``. Attentions differ in how
that must be done; each way is a *kind*, a small callable ``kind(attention, x) -> output``, where the output is a
tensor or a tuple that starts with one, and the first line of its docstring says in words what it does. Those that call
the attention itself are here; :class:`~peft_aim.attention.projected.Projected` uses its projections alone.

Kinds call ``attention.forward``: hooks on an attention, AIM's spatial adapter and recorders of attention maps among
them, are for its call in space alone.
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
    """Teach AIM how attention of a class of your own is called along time; a decorator.

    What it returns for random tokens is checked as for AIM's own kinds: self-attention over the sequence that it gets,
    of any length, blind to positions.

    Args:
        attention_class: The class; a function for one of its bases does not count.

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
    """Return what a kind does, the first line of its docstring, or its name if it is a user's.

    Example:
        >>> in_words(plain)
        'its own call on nothing but tokens'
    """
    line = (inspect.getdoc(kind) or f"your function {kind.__name__}").partition("\n")[0]
    return line.rstrip(".")


def plain(attention: nn.Module, x: Tensor) -> Any:
    """its own call on nothing but tokens"""  # noqa: D403, D415 (a phrase, for a table)
    return attention.forward(x)  # masks, biases and rotary embeddings of space are optional, and left out


def multihead(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """its own call with query, key and value"""  # noqa: D403, D415
    x = x if attention.batch_first else x.transpose(0, 1)
    recorded = off_the_fast_path(attention, x)
    mixed = attention.forward(recorded, recorded, recorded, need_weights=False)[0]
    mixed = mixed if recorded is x else mixed.detach()
    return mixed if attention.batch_first else mixed.transpose(0, 1)


def off_the_fast_path(attention: nn.MultiheadAttention, query: Tensor) -> Tensor:
    """Make torch's own module round alike whether or not something before it is being trained.

    In evaluation mode it takes another kernel when no gradient is asked for. An adapter that is loaded for inference
    would then not give the very scores that it gave where it was trained.

    Returns:
        The query, or a copy of which gradients are recorded, if none would be otherwise.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return query
    if query.requires_grad or any(parameter.requires_grad for parameter in attention.parameters()):
        return query
    return query.detach().requires_grad_()


@dataclass(frozen=True)
class OnGrid:
    """its own call on a grid of one row, whose columns are the frames

    For attentions that take images, ``(B, H, W, D)`` or ``(B, D, H, W)``.

    Args:
        channels: Axis of the channels, -1 or 1.
    """  # noqa: D415

    channels: int

    def __call__(self, attention: nn.Module, x: Tensor) -> Tensor:
        """Attend along ``(B*N, T, D)``."""
        if self.channels == -1:
            return first_tensor(attention.forward(x.unsqueeze(1))).squeeze(1)
        return first_tensor(attention.forward(x.mT.unsqueeze(2))).squeeze(2).mT


@dataclass(frozen=True)
class Unrotated:
    """its own call with the neutral rotary embedding, cos = 1 and sin = 0

    For attentions that insist on one.

    Args:
        arguments: Name of the argument that takes ``(cos, sin)``, or of the two that take one each.
        width: Last axis of cos and sin.
        axes: How many axes they have, two for ``(T, width)``, three for ``(1, T, width)``.
    """  # noqa: D415

    arguments: tuple[str, ...]
    width: int
    axes: int = 2

    def __call__(self, attention: nn.Module, x: Tensor) -> Any:
        """Attend along ``(B*N, T, D)``."""
        cos = x.new_ones(*[1] * (self.axes - 2), x.shape[1], self.width)
        pair = (cos, torch.zeros_like(cos))
        rotation = {self.arguments[0]: pair} if len(self.arguments) == 1 else dict(zip(self.arguments, pair))  # noqa: B905
        return attention.forward(x, **rotation)
