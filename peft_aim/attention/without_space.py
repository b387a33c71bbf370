"""Checks projections around softmax attention against an attention's own forward, less what is spatial in that.

Biases, tables, pooling and the like are set to zero, or replaced by the identity, in a copy with random weights. If
the projections then give the same result, and all that they leave out distinguishes positions, they are what the
attention computes without space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.attention.projected import Projected
from peft_aim.tracing import first_tensor, is_norm, norm_width

# What pools queries or keys over an image is made of, together with norms over all channels.
POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d)
SPATIAL = (nn.Conv2d, *POOLS, nn.GELU, nn.ReLU)
LARGE = 1024  # tokens: attention over more is tried on a small image first
SMALL = (8, 8)

# The forward on tokens with the channels last, whatever else it takes being given.
Forward = Callable[[Tensor], Tensor]


def check_reproduces_forward(
    kind: Projected, attention: nn.Module, shape: tuple[int, ...], arguments: dict[str, Any], channels: int
) -> None:
    """Check that, without what is spatial in it, an attention's own forward computes what a kind does.

    Args:
        kind: The projections around softmax attention.
        attention: A copy with random weights in float64; it is changed in the meantime.
        shape: Shape of the tokens that the block's forward calls it on.
        arguments: Other arguments of that call, by name.
        channels: Axis of the channels in these tokens, -1 or 1.

    Raises:
        ValueError: If it computes something else, or depends on what the kind leaves out in other ways than space.
    """
    pools = any(isinstance(module, POOLS) or _is_wide(module) for module in attention.modules())
    for without in (_without_parameters, _without_layers) if pools else (_without_parameters,):
        with without(attention, kind) as left_out:
            ran = False
            for positions, given in _calls(attention, shape, arguments, channels):
                if ran and math.prod(positions) > LARGE:
                    continue
                x = torch.randn(2, *positions, shape[channels], generator=torch.Generator().manual_seed(1)).double()
                forward = partial(_forward, attention, given, channels)
                try:
                    own = forward(x)
                except Exception:  # of another size than it is made for, or without a layer that it needs
                    continue
                ran = ran or own.shape == x.shape
                if own.shape == x.shape and same(first_tensor(kind(attention, x.flatten(1, -2))), own.flatten(1, -2)):
                    _check_leaves_out_space_alone(attention, left_out, forward, x, own)
                    return
    raise ValueError("they do not reproduce its own forward")


def _check_leaves_out_space_alone(
    attention: nn.Module, left_out: dict[str, Tensor], forward: Forward, x: Tensor, own: Tensor
) -> None:
    """Check that what a kind leaves out distinguishes positions, which a temperature, a gate and the like do not."""
    positions, generator = x[0, ..., 0].numel(), torch.Generator().manual_seed(2)
    orders = [torch.randperm(positions, generator=generator) for _ in range(8)]  # a small grid has symmetries

    def is_blind() -> bool:
        mixed, tokens = forward(x).flatten(1, -2), x.flatten(1, -2)
        return all(same(forward(tokens[:, o].view_as(x)).flatten(1, -2), mixed[:, o]) for o in orders)

    for name, value in left_out.items():
        parameter = attention.get_parameter(name)
        parameter.copy_(value)
        _forget_caches(attention)
        if positions > 2 and not same(forward(x), own) and is_blind():
            raise ValueError(f"they leave out {name}, which does not depend on positions")
        parameter.zero_()
    _forget_caches(attention)


def _calls(
    attention: nn.Module, shape: tuple, arguments: dict[str, Any], channels: int
) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    """Iterate over positions of tokens, and other arguments, to call an attention on; the largest come last."""
    given = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
    own = shape[1:-1] if channels == -1 else shape[2:]

    def on(grid: tuple[int, ...], positions: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, Any]]:
        return positions, {name: grid if _is_size(value) else value for name, value in given.items()}

    is_large = math.prod(own) > LARGE
    yield on(SMALL, SMALL if len(own) == 2 else (math.prod(SMALL),)) if is_large else (own, given)
    window = next((getattr(attention, n) for n in ("window_size", "ws") if getattr(attention, n, None)), None)
    if window is not None:
        grid = tuple(window) if isinstance(window, (tuple, list)) else (window, window)
        for positions in [grid] if len(own) == 2 else [(grid[0] * grid[1],), grid[:1]]:
            yield on(grid, positions)
    elif len(own) == 2:  # perhaps a window is one row
        yield (1, own[1]), given
    if is_large:
        yield own, given


def _is_size(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(n, int) for n in value)


def _is_wide(module: nn.Module) -> bool:
    """Whether a module is a convolution over more than one pixel."""
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)


def _forward(attention: nn.Module, arguments: dict[str, Any], channels: int, x: Tensor) -> Tensor:
    return first_tensor(attention(x.movedim(-1, channels), **arguments)).movedim(channels, -1)


@contextmanager
def _without_parameters(attention: nn.Module, kind: Projected) -> Iterator[dict[str, Tensor]]:
    """Set the parameters that a kind leaves out to zero for a while; return what they were, by name."""
    used = kind.used_parameters(attention)
    left_out = {name: p.clone() for name, p in attention.named_parameters() if id(p) not in used}
    for name in left_out:
        attention.get_parameter(name).zero_()
    _forget_caches(attention)
    try:
        yield left_out
    finally:
        for name, value in left_out.items():
            attention.get_parameter(name).copy_(value)
        _forget_caches(attention)


@contextmanager
def _without_layers(attention: nn.Module, kind: Projected) -> Iterator[dict[str, Tensor]]:
    """Replace by the identity, besides, what pools over an image."""
    used = kind.used_parameters(attention)
    width = next(attention.get_submodule(kind.inner[0]).parameters()).shape[1]
    spatial = {
        name: module
        for name, module in attention.named_modules()
        if name
        and (isinstance(module, SPATIAL) or (is_norm(module) and norm_width(module) == width))
        and not any(id(parameter) in used for parameter in module.parameters())
    }
    for name in spatial:
        attention.set_submodule(name, nn.Identity())
    try:
        with _without_parameters(attention, kind) as left_out:
            yield left_out
    finally:
        for name, module in spatial.items():
            attention.set_submodule(name, module)


def _forget_caches(attention: nn.Module) -> None:
    """Make an attention forget a bias that it has cached for evaluation (LeViT)."""
    attention.train()
    attention.eval()


def same(a: Tensor, b: Tensor) -> bool:
    """Whether results agree, up to the softmax in float32 that many attentions insist on."""
    return torch.allclose(a, b, rtol=0, atol=1e-4)
