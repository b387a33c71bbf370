"""An attention's own forward without what is spatial in it, which its projections have to match.

Biases, tables, pooling and the like are put to zero or replaced by the identity in a copy with random weights. Where
the projections around softmax attention then give the same result, and all that they leave out tells places apart,
they are what the attention computes, less space.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.attention.projected import Projected
from peft_aim.tracing import first_tensor, is_norm, norm_width

# What pools queries or keys over an image is made of, together with norms over all channels.
POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d)
SPATIAL = (nn.Conv2d, *POOLS, nn.GELU, nn.ReLU)

# An attention with nothing spatial in it, tokens, its own result, and the call that gave it.
Reference = tuple[nn.Module, Tensor, Tensor, Callable[[Tensor], Tensor]]


def check_reproduces_forward(kind: Projected, twin: nn.Module, references: list[Reference]) -> None:
    """Check that, without what is spatial in it, the module's own forward computes the same."""
    for bare, x, own, call in references:
        if same(first_tensor(kind(bare, x.flatten(1, -2))), own.flatten(1, -2)):
            _check_leaves_out_space_alone(kind, twin, bare, x, own, call)
            return
    raise ValueError("they do not reproduce its own forward")


def _check_leaves_out_space_alone(
    kind: Projected, twin: nn.Module, bare: nn.Module, x: Tensor, own: Tensor, call: Callable[[Tensor], Tensor]
) -> None:
    """Check that what a kind leaves out tells places apart, which a temperature, a gate or the like does not."""
    used, places, generator = kind.used_parameters(bare), x[0, ..., 0].numel(), torch.Generator().manual_seed(2)
    orders = [torch.randperm(places, generator=generator) for _ in range(8)]  # a small grid has symmetries

    def is_blind() -> bool:
        mixed = call(x).flatten(1, -2)
        return all(same(call(x.flatten(1, -2)[:, o].view_as(x)).flatten(1, -2), mixed[:, o]) for o in orders)

    for name, parameter in [(n, p) for n, p in bare.named_parameters() if id(p) not in used]:
        parameter.copy_(twin.get_parameter(name))
        _forget_caches(bare)
        if places > 2 and not same(call(x), own) and is_blind():
            raise ValueError(f"they leave out {name}, which has nothing to do with places")
        parameter.zero_()
    _forget_caches(bare)


def references_of(
    kind: Projected, twin: nn.Module, shape: tuple, arguments: dict[str, Any], channels: int
) -> list[Reference]:
    """Run an attention's own forward without what is spatial in it.

    What a kind leaves out is put to zero, or replaced by the identity, so that biases vanish and nothing is pooled.
    """
    found = []
    pools = any(isinstance(module, POOLS) or _reaches_out(module) for module in twin.modules())
    for neutralize in (_without_parameters, _without_layers) if pools else (_without_parameters,):
        bare = neutralize(twin, kind)
        for places, given in _calls(twin, shape, arguments, channels):
            x = torch.randn(2, *places, shape[channels], generator=torch.Generator().manual_seed(1)).double()
            call = partial(_call, bare, given, channels)
            try:
                own = call(x)
            except Exception:  # of another size than it is made for, or without a layer that it needs
                continue
            if own.shape == x.shape:
                found.append((bare, x, own, call))
    return found


def _calls(
    attention: nn.Module, shape: tuple, arguments: dict[str, Any], channels: int
) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """Return places of tokens, and other arguments, to call an attention on: all that there were, or one window."""
    given = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
    own = shape[1:-1] if channels == -1 else shape[2:]
    window = next((getattr(attention, n) for n in ("window_size", "ws") if getattr(attention, n, None)), None)
    if window is None:
        return [(own, given), *([((1, own[1]), given)] if len(own) == 2 else [])]  # perhaps a window is one row
    grid = tuple(window) if isinstance(window, (tuple, list)) else (window, window)
    at_window = {name: grid if _is_size(value) else value for name, value in given.items()}
    windows = [grid] if len(own) == 2 else [(grid[0] * grid[1],), grid[:1]]
    return [(own, given), *((window, at_window) for window in windows)]


def _is_size(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(n, int) for n in value)


def _without_parameters(twin: nn.Module, kind: Projected) -> nn.Module:
    bare = copy.deepcopy(twin)
    used = kind.used_parameters(bare)
    for parameter in bare.parameters():
        if id(parameter) not in used:
            parameter.zero_()
    _forget_caches(bare)
    return bare


def _forget_caches(attention: nn.Module) -> None:
    """Make an attention forget a bias that it has cached for evaluation (LeViT)."""
    attention.train()
    attention.eval()


def _call(attention: nn.Module, arguments: dict[str, Any], channels: int, x: Tensor) -> Tensor:
    return first_tensor(attention(x.movedim(-1, channels), **arguments)).movedim(channels, -1)


def _reaches_out(module: nn.Module) -> bool:
    """Whether a module is a convolution over more than one pixel."""
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)


def _without_layers(twin: nn.Module, kind: Projected) -> nn.Module:
    bare = _without_parameters(twin, kind)
    used = kind.used_parameters(bare)
    width = next(bare.get_submodule(kind.inner[0]).parameters()).shape[1]
    for name, module in list(bare.named_modules()):
        spatial = isinstance(module, SPATIAL) or (is_norm(module) and norm_width(module) == width)
        if name and spatial and not any(id(parameter) in used for parameter in module.parameters()):
            parent, _, last = name.rpartition(".")
            setattr(bare.get_submodule(parent), last, nn.Identity())
    return bare


def same(a: Tensor, b: Tensor) -> bool:
    """Whether results agree, up to the softmax in float32 that many attentions insist on."""
    return torch.allclose(a, b, rtol=0, atol=1e-4)
