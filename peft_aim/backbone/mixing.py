"""Observes which modules mix spatial positions, by running them, whatever they are called.

A module runs alone on tokens of which one position is marked by NaN. Its layers compute nothing: they return ones
with the marks of their input at the same positions, and neither do products of tensors. So the marks reach other
positions only where something else than a layer of one position, a norm, a convolution or a pooling window passes them
on: attention above all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_aim.attention import random_twin
from peft_aim.backbone.axes import axis_of_tokens
from peft_aim.tracing import (
    Call,
    Handle,
    first_tensor,
    is_linear,
    is_mixer,
    is_norm,
    mixes,
    passing_marks,
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


class _Search:
    """A search for the modules that mix positions; of copies, one runs."""

    def __init__(self, root: Call, passing: Passing, axes: Axes | None) -> None:
        self._root = root
        self._passes = passing
        self._gates: dict[Call, bool] = {}
        self._axes = dict(axes or {})
        self._known: dict[tuple[Call, int], bool] = {}

    def below(self, call: Call) -> list[Call]:
        if self._passes(call) or not mixes(call.module):
            return []
        if is_mixer(call.module):
            attends = isinstance(call.module, nn.MultiheadAttention) and _attends_to_itself(call)
            return [call] if attends and maps_tokens(call) else []
        maps = maps_tokens(call)
        if maps and not self._spreads(call, ()):
            return []
        inside = [found for child in call.children for found in self.below(child)]
        if not maps or not self._spreads(call, inside):
            return inside
        return [] if not inside and self._is_gate(call.original) else [call]

    def _is_gate(self, call: Call) -> bool:
        if call not in self._gates:
            self._gates[call] = _is_gate(call)
        return self._gates[call]

    def _spreads(self, call: Call, others: list[Call] | tuple[()]) -> bool:
        own = [part for part in call.walk() if self._passes(part)]  # those of a copy need not be those of another
        key = (call.original if not own else call, sum(self._gates.values()), len(others))
        if key not in self._known:
            passing = {id(part) for part in (*own, *others)}
            axis = self._axis(call)
            tried = (-1, 1) if axis is None else (axis,)
            passes = lambda part: id(part) in passing or self._gates.get(part.original, False)
            self._known[key] = all(_reached(call, passes, channels) > 1 for channels in tried)
        return self._known[key]

    def _axis(self, call: Call) -> int | None:
        """Return the channel axis of a call, which other calls on tokens of the same shape may show."""
        axis = axis_of_tokens(call)
        if axis is None and not self._axes:
            clear = {c.given.shape: axis_of_tokens(c) for c in self._root.walk() if maps_tokens(c)}
            self._axes = {shape: axis for shape, axis in clear.items() if axis is not None}
        return self._axes.get(call.given.shape) if axis is None else axis


def _attends_to_itself(call: Call) -> bool:
    """Whether torch's own attention gets the same tokens as query and as key, unlike in a pooling head."""
    key = Handle.of(call.arguments.get("key"))
    return key is not None and key == call.given


@torch.no_grad()
def _reached(call: Call, passing: Passing, channels: int) -> int:
    """Return the number of positions that the marks of one position reach."""
    if call.given.device.type == "meta":  # on which nothing runs
        return 0
    tokens = call.given.zeros() + 1
    tokens.movedim(channels, -1)[(0,) * (tokens.ndim - 1)] = torch.nan
    try:
        with running(call.module, training=False), standing_in(_stand_ins(call, passing)), passing_marks():
            returned = first_tensor(call.again(tokens))
    except Exception:  # a foreign module may not run alone, as one that counts its calls; then nothing is observed
        return 0
    return int(returned.isnan().movedim(channels, -1).any(-1).sum())


def _stand_ins(call: Call, passing: Passing) -> dict[nn.Module, Callable[..., Any]]:
    found: dict[nn.Module, Callable[..., Any]] = {}

    def collect(part: Call) -> None:
        module = part.module
        if passing(part) or _is_norm_of_channels(module) or isinstance(module, WINDOWS):
            found[module] = partial(_pass_on, part, module.forward)
        elif isinstance(module, ADAPTIVE):
            found[module] = partial(_pool, part, module.forward)
        elif is_mixer(module):
            found[module] = partial(_blank, part, module.forward)
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


def _pool(part: Call, forward: Callable[..., Any], tokens: Tensor) -> Any:
    """Pool tokens into a fixed grid, without the marks: a decoder may resize it again, which is no attention."""
    changes = part.returned is None or part.returned.shape != tokens.shape
    return forward(tokens.nan_to_num(1.0)) if changes else _pass_on(part, forward, tokens)


def _blank(part: Call, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return ones with the marks of the input at the same positions; torch's own attention marks all of them."""
    tokens = [tensor for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()]
    if part.returned is None or not tokens or tokens[0].shape != part.given.shape:
        return forward(*args, **kwargs)
    output = part.returned.zeros() + 1
    if isinstance(part.module, nn.MultiheadAttention):
        marks = torch.stack([tensor.isnan().any() for tensor in tokens]).any()
    elif is_linear(part.module):
        marks = tokens[0].isnan().any(-1, keepdim=True)
    else:
        marks = _resized(tokens[0].isnan().any(1, keepdim=True), output)
    return replace_first(part.form, output.masked_fill(marks, torch.nan))


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
