"""Observes which modules mix spatial positions, by running them, whatever they are called.

A module runs alone on tokens of which one position is marked (:mod:`peft_aim.backbone.marks`). Its layers compute
nothing: they return ones with the marks of their input at the same positions; neither do products of tensors. So the
marks reach other positions only where something else than a layer of one position, a norm, a convolution or a pooling
window passes them on: attention above all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_aim.attention import random_twin
from peft_aim.backbone.axes import axis_of_tokens
from peft_aim.backbone.marks import Marks, observed
from peft_aim.tracing import (
    Call,
    Handle,
    first_tensor,
    is_linear,
    is_mixer,
    is_norm,
    mixes,
    replace_first,
    running,
    standing_in,
    tensors_in,
    tokens_given,
)

WINDOWS = (nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d)
ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
Passing = Callable[[Call], bool]
Axes = Mapping[tuple[int, ...], int]


def maps_tokens(call: Call) -> bool:
    """Whether a call maps tokens to tokens of the same shape."""
    return (
        None not in (call.given, call.returned)
        and len(call.given.shape) > 2
        and (call.given.shape == call.returned.shape)
    )


def mixers(call: Call, passing: Passing = lambda call: False, axes: Axes | None = None) -> list[Call]:
    """Find the innermost modules below a call, or the called module itself, that mix spatial positions.

    Modules that only scale or shift all positions alike (squeeze-and-excitation) are not among them.

    Args:
        call: A traced call of a module that maps tokens to tokens, or of one that contains such modules.
        passing: Which calls not to look into: these modules pass their tokens on.
        axes: Known channel axes of tokens, by their shapes, for modules that do not show theirs.

    Example:
        >>> from peft_aim.tracing import trace
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> [call.name for call in mixers(trace(layer, {"src": torch.zeros(2, 5, 8)})[0])]
        ['self_attn']
    """
    return _Search(call, passing, axes).below(call)


_gates: WeakKeyDictionary[Call, bool] = WeakKeyDictionary()  # for all searches in a trace


class _Search:
    """A search for the modules that mix positions; of copies, one runs."""

    def __init__(self, root: Call, passing: Passing, axes: Axes | None) -> None:
        self._root = root
        self._passes = passing
        self._gates: dict[Call, bool] = {}
        self._axes = dict(axes or {})
        self._known: dict[tuple[Call, int, int], bool | None] = {}

    def below(self, call: Call) -> list[Call]:
        if self._passes(call) or not mixes(call.module):
            return []
        if is_mixer(call.module):
            attends = isinstance(call.module, nn.MultiheadAttention) and _attends_to_itself(call)
            return [call] if attends and maps_tokens(call) else []
        maps = maps_tokens(call)
        if maps and not _takes_more(call) and self._spreads(call, ()) is False:
            return []
        inside = [found for child in call.children for found in self.below(child)]
        if not maps or not self._spreads(call, inside):
            return inside
        return [] if not inside and self._is_gate(call.original) else [call]

    def _is_gate(self, call: Call) -> bool:
        if call not in self._gates:
            _gates[call] = self._gates[call] = _gates[call] if call in _gates else _is_gate(call)
        return self._gates[call]

    def _spreads(self, call: Call, others: list[Call] | tuple[()]) -> bool | None:
        """Whether a module mixes positions, other than by some parts; None if it cannot run alone."""
        own = [part for part in call.walk() if self._passes(part)]  # those of a copy need not be those of another
        key = (call.original if not own else call, sum(self._gates.values()), len(others))
        if key not in self._known:
            passing = {id(part) for part in (*own, *others)}
            axis = self._axis(call)
            tried = (-1, 1) if axis is None else (axis,)
            passes = lambda part: id(part) in passing or self._gates.get(part.original, False)
            spread = [_spreads_marks(call, passes, channels) for channels in tried]
            self._known[key] = None if None in spread else all(spread)
        return self._known[key]

    def _axis(self, call: Call) -> int | None:
        """Return the channel axis of a call, which other calls on tokens of the same shape may show."""
        axis = axis_of_tokens(call)
        if axis is None and not self._axes:
            clear = {c.given.shape: axis_of_tokens(c) for c in self._root.walk() if maps_tokens(c)}
            self._axes = {shape: axis for shape, axis in clear.items() if axis is not None}
        return self._axes.get(call.given.shape) if axis is None else axis


def _takes_more(call: Call) -> bool:
    """Whether a module takes other tokens of the same images, in which it may mix positions."""
    others = [value for value in tensors_in(call.arguments) if value.is_floating_point() and value.ndim > 2]
    return any(other.shape[0] == call.given.shape[0] for other in others)


def _attends_to_itself(call: Call) -> bool:
    """Whether torch's own attention gets the same tokens as query and as key, unlike in a pooling head."""
    key = Handle.of(call.arguments.get("key"))
    return key is not None and key == call.given


@torch.no_grad()
def _spreads_marks(call: Call, passing: Passing, channels: int) -> bool | None:
    """Whether the marks of one position reach others, None if the module cannot run alone.

    What an adaptive pool returns is not marked at first: a decoder may resize the pooled grid again, which is no
    attention. If one cell of it reaches all positions, it is: resizing spreads a cell over its surroundings.
    """
    if call.given.device.type == "meta":  # on which nothing runs
        return False
    reached = _reached(call, passing, channels)
    if reached is None or int(reached.sum()) > 1 or not _has_pool(call):
        return reached if reached is None else int(reached.sum()) > 1
    reached = _reached(call, passing, channels, through_pools=True)
    return reached is not None and any(bool(reached.select(axis, 0).all()) for axis in range(min(2, reached.ndim - 1)))


def _has_pool(call: Call) -> bool:
    return any(isinstance(part.module, ADAPTIVE) for part in call.walk())


def _reached(call: Call, passing: Passing, channels: int, through_pools: bool = False) -> Tensor | None:
    """Return which positions the marks of one position reach, ``(B, *N)``, None if the module cannot run alone."""
    position = torch.zeros(call.given.shape, dtype=torch.bool)
    position.movedim(channels, -1)[(0,) * (position.ndim - 1)] = True

    def run(marks: Marks) -> Tensor:
        tokens = marks.put(call.given.zeros() + 1, position.to(call.given.device))
        with (
            running(call.module, training=False),
            standing_in(_stand_ins(call, passing, marks, through_pools)),
            marks.in_products(),
        ):
            return marks.of(first_tensor(call.again(tokens))).movedim(channels, -1).any(-1)

    with suppress(Exception):  # a foreign module may not run alone, as one that counts its calls
        return observed(run)
    return None


def _stand_ins(call: Call, passing: Passing, marks: Marks, through_pools: bool) -> dict[nn.Module, Callable[..., Any]]:
    found: dict[nn.Module, Callable[..., Any]] = {}

    def collect(part: Call) -> None:
        module = part.module
        if passing(part) or _is_norm_of_channels(module) or isinstance(module, WINDOWS):
            found[module] = partial(_pass_on, part, module.forward)
        elif isinstance(module, ADAPTIVE):
            found[module] = partial(_pool, part, module.forward, marks, through_pools)
        elif is_mixer(module):
            found[module] = partial(_blank, part, module.forward, marks)
        else:
            for child in part.children:
                collect(child)

    for child in call.children:
        collect(child)
    return found


def _pass_on(part: Call, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the input, in the form of the output, where that has the same number of features."""
    tokens = tokens_given(part.module, args, kwargs)
    if part.returned is None or part.returned.numel != tokens.numel():
        return forward(*args, **kwargs)
    return replace_first(part.form, tokens.reshape(part.returned.shape))


def _is_norm_of_channels(module: nn.Module) -> bool:
    """Whether a module is a norm with a scale and shift per channel, not attention that is named after a norm."""
    return is_norm(module) and all(p.numel() == max(p.shape, default=1) for p in module.parameters())


def _pool(part: Call, forward: Callable[..., Any], marks: Marks, through: bool, tokens: Tensor) -> Any:
    """Pool tokens into a fixed grid, without the marks, or with those of one cell of several."""
    if part.returned is not None and part.returned.shape == tokens.shape:
        return _pass_on(part, forward, tokens)
    marked = marks.of(tokens)
    pooled = forward(tokens.masked_fill(marked, 1.0))
    cells = torch.zeros(pooled.shape, dtype=torch.bool, device=pooled.device)
    if through and pooled[0, 0].numel() > 1:
        cells.flatten(2)[..., 0] = marked.flatten(2).any(-1)
    return marks.put(pooled, cells)


def _blank(part: Call, forward: Callable[..., Any], marks: Marks, *args: Any, **kwargs: Any) -> Any:
    """Return ones with the marks of the input at the same positions; torch's own attention marks all of them."""
    tokens = [tensor for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()]
    if part.returned is None or not tokens or tokens[0].shape != part.given.shape:
        return forward(*args, **kwargs)
    output = part.returned.zeros() + 1
    marked = [marks.of(tensor) for tensor in tokens]
    if isinstance(part.module, nn.MultiheadAttention):
        where = torch.stack([tensor.any() for tensor in marked]).any()
    elif is_linear(part.module):
        where = marked[0].any(-1, keepdim=True)
    else:
        where = _resized(marked[0].any(1, keepdim=True), output)
    return replace_first(part.form, marks.put(output, where))


def _resized(marks: Tensor, like: Tensor) -> Tensor:
    """Resize the marks of a grid (B, 1, *N) to that of the output of a convolution."""
    if marks.shape[2:] == like.shape[2:]:
        return marks
    pool = F.adaptive_max_pool1d if marks.ndim == 3 else F.adaptive_max_pool2d
    return pool(marks.float(), like.shape[2:]).bool()


@torch.no_grad()
def _is_gate(call: Call) -> bool:
    """Whether a module only scales or shifts its tokens, by the same amount at all positions, with random weights."""
    x = torch.randn(call.given.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    try:
        y = first_tensor(replace(call, module=random_twin(call.module)).again(x))
    except Exception:  # it takes more than tokens, which a gate does not
        return False
    for axis in (-1, 1):
        one, other = (tokens.movedim(axis, -1).flatten(1, -2)[0] for tokens in (x, y))  # (N, D)
        pairs = ((other * one[:1], other[:1] * one), (other - one, other[:1] - one[:1]))
        if any(torch.allclose(a, b.expand_as(a), rtol=1e-4, atol=1e-6) for a, b in pairs):
            return True
    return False
