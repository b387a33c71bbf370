"""Classifies the modules of a block: norms, dropout, and layers that mix features."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.hooks import ModelHook
from torch import nn

from peft_aim.tracing.packed import is_linear

MIXERS = (nn.Conv1d, nn.Conv2d, nn.MultiheadAttention)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: by its class name (LayerNorm, BatchNormAct2d), or else by what it does to tokens.

    A norm has no layers. Under another name, it has a scale per channel, acts on each token alone and limits its size,
    as RMSNorm and dynamic tanh (DyT) do.

    Example:
        >>> class Tanh(nn.Module):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.scale = nn.Parameter(torch.ones(4))
        ...     def forward(self, x):
        ...         return x.tanh() * self.scale
        >>> is_norm(nn.LayerNorm(4)), is_norm(nn.Linear(4, 4)), is_norm(Tanh())
        (True, False, True)
    """
    if "norm" in type(module).__name__.lower():
        return not any(True for child in module.children() for _ in child.parameters())
    if type(module).__module__.startswith("torch.nn.") or any(True for _ in module.children()) or is_linear(module):
        return False
    if module not in _bounding:
        _bounding[module] = _bounds_each_token(module)
    return _bounding[module]


# Few modules are tried: those without parts, of classes outside of torch.
_bounding: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def _bounds_each_token(module: nn.Module) -> bool:
    """Whether a module without parts maps each token alone, to one that no longer grows with it."""
    tensors = [*module.parameters(), *module.buffers()]
    vectors = all(t.is_floating_point() and t.numel() == max(t.shape, default=1) for t in tensors)
    width = max((parameter.numel() for parameter in module.parameters()), default=0)
    if not vectors or width < 2:
        return False
    for shape, axis in (((1, 3, width), -1), ((1, width, 3, 1), 1)):
        with suppress(Exception):  # it takes other tokens
            twin, x = _twin_and_tokens(module, shape)
            y, changed = twin(1e4 * x), x.clone()
            changed.movedim(axis, -1)[0, 0] += torch.arange(width).view(width)
            moved = (twin(1e4 * changed) != y).movedim(axis, -1).any(-1).flatten()
            bounded = y.shape == x.shape and torch.allclose(y, twin(1e5 * x), rtol=1e-3, atol=1e-4)
            if bounded and y.std() > 0.1 and moved[0] and not moved[1:].any():
                return True
    return False


def is_dropout(module: nn.Module) -> bool:
    """Whether a module drops at random in training, by its class name: Dropout, DropPath, StochasticDepth.

    Example:
        >>> is_dropout(nn.Dropout(0.1)), is_dropout(nn.Identity())
        (True, False)
    """
    name = type(module).__name__.lower()
    return ("drop" in name or "stochastic" in name) and not any(True for _ in module.children())


def is_mixer(module: nn.Module) -> bool:
    """Whether a module is a layer that mixes features: linear, whatever its weights are, a convolution, attention.

    Example:
        >>> is_mixer(nn.Conv2d(4, 4, 1)), is_mixer(nn.Sequential(nn.Linear(4, 4)))
        (True, False)
    """
    return isinstance(module, MIXERS) or is_linear(module)


def mixes(module: nn.Module) -> bool:
    """Whether a module is, or contains, a layer that mixes features.

    Example:
        >>> mixes(nn.Sequential(nn.Linear(4, 4))), mixes(nn.GELU())
        (True, False)
    """
    return any(map(is_mixer, module.modules()))


def norm_width(norm: nn.Module) -> int | None:
    """Return the number of channels of a norm, None if it has no scale per channel.

    The scale is its weight, or the first parameter of a norm by hand: a vector, with axes of size 1 or without.
    """
    scale = _scale(norm)
    return None if scale is None else scale.numel()


def _scale(norm: nn.Module) -> nn.Parameter | None:
    scale = getattr(norm, "weight", None)
    if scale is None:
        scale = next(norm.parameters(), None)
    return scale if scale is not None and scale.numel() == max(scale.shape, default=0) else None


def input_width(module: nn.Module) -> int | None:
    """Return the number of channels that a norm or a layer takes, None for any other module.

    Example:
        >>> input_width(nn.Conv2d(8, 16, 3, groups=8)), input_width(nn.LayerNorm(4)), input_width(nn.GELU())
        (8, 4, None)
    """
    if is_norm(module):
        return norm_width(module)
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim
    return getattr(module, "in_features", getattr(module, "in_channels", None)) if is_mixer(module) else None


def output_width(layer: nn.Module) -> int:
    """Return the number of channels that a linear layer or a convolution returns.

    Example:
        >>> output_width(nn.Linear(4, 2)), output_width(nn.Conv2d(4, 8, 1))
        (2, 8)
    """
    return layer.out_channels if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else layer.out_features


def copy_without_hooks(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy without the hooks that somebody has registered.

    Args:
        module: The module.
        memo: Copies to use for tensors, by their id, as in ``copy.deepcopy``.
    """
    offloading = [hook for hook in (getattr(part, "_hf_hook", None) for part in module.modules()) if hook is not None]
    twin = copy.deepcopy(module, {**(memo or {}), **{id(hook): hook for hook in offloading}})
    for part in twin.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        if hasattr(part, "_hf_hook"):  # accelerate's, which holds and loads all offloaded weights
            part._hf_hook = ModelHook()
    return twin


def channel_axis(module: nn.Module, shape: tuple[int, ...], width: int) -> int | None:
    """Return the channel axis of the tokens that a norm, an attention or an MLP is called on.

    Args:
        module: The module.
        shape: Shape of the tokens that it is called on.
        width: Token width D.

    Returns:
        -1 for ``(B, *N, D)``, 1 for ``(B, D, *N)``, None for any other layout.

    Example:
        >>> channel_axis(nn.LayerNorm(8), (2, 8, 8), 8), channel_axis(nn.Conv2d(8, 8, 1), (2, 8, 4, 4), 8)
        (-1, 1)
    """
    fitting = [axis for axis in (-1, 1) if len(shape) > 2 and shape[axis] == width]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    if is_norm(module):
        return _axis_of_scale(module, shape)
    first = next((part for part in module.modules() if is_mixer(part)), None)
    return 1 if isinstance(first, (nn.Conv1d, nn.Conv2d)) else -1


@torch.no_grad()
def acts_on_each_position(norm: nn.Module, shape: tuple[int, ...], width: int) -> bool:
    """Whether a norm normalizes each spatial position on its own, as LayerNorm does and GroupNorm does not.

    Args:
        norm: The norm.
        shape: Shape of the tokens that it is called on.
        width: Token width D.

    Example:
        >>> acts_on_each_position(nn.GroupNorm(1, 8), (2, 8, 4, 4), 8)
        False
    """
    axis = channel_axis(norm, shape, width)
    if axis is None:
        return False
    twin, x = _twin_and_tokens(norm, shape)
    changed = x.clone()
    changed.movedim(axis, -1)[(0, *[0] * (len(shape) - 2))] += torch.arange(width)
    return int((twin(changed) != twin(x)).movedim(axis, -1).any(-1).sum()) == 1


@torch.no_grad()
def _axis_of_scale(norm: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the axis of a norm's scale, observed by changing the scale of one channel."""
    twin, x = _twin_and_tokens(norm, shape)
    before = twin(x)
    if norm_width(norm) is None:
        power = before.square().mean(-1)
        return -1 if torch.allclose(power, torch.ones_like(power), atol=0.05) else 1
    _scale(twin).view(-1)[0] = 3
    changed = twin(x) != before
    return -1 if changed[..., 1:].sum() == 0 else 1


def _twin_and_tokens(norm: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, torch.Tensor]:
    """Return a copy of a norm with all parameters and buffers set to 1, and random tokens of one image."""
    twin = copy_without_hooks(norm).to_empty(device="cpu").float().eval()
    for tensor in (*twin.parameters(), *twin.buffers()):
        tensor.fill_(1)
    return twin, torch.randn(1, *shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float32)
