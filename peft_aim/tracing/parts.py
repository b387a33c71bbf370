"""What a module of a block is, by its class: a norm, or a layer that mixes features."""

from __future__ import annotations

import copy

import torch
from torch import nn

MIXERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: one says so in its class name, LayerNorm, BatchNormAct2d, and holds no layers.

    Example:
        >>> is_norm(nn.LayerNorm(4)), is_norm(nn.Linear(4, 4))
        (True, False)
    """
    learns = any(True for child in module.children() for _ in child.parameters())
    return "norm" in type(module).__name__.lower() and not learns


def is_dropout(module: nn.Module) -> bool:
    """Whether a module drops at random in training: one says so in its class name, Dropout, DropPath, StochasticDepth.

    Example:
        >>> is_dropout(nn.Dropout(0.1)), is_dropout(nn.Identity())
        (True, False)
    """
    name = type(module).__name__.lower()
    return ("drop" in name or "stochastic" in name) and not any(True for _ in module.children())


def mixes(module: nn.Module) -> bool:
    """Whether a module has a layer that mixes features, be it itself.

    Example:
        >>> mixes(nn.Sequential(nn.Linear(4, 4))), mixes(nn.GELU())
        (True, False)
    """
    return any(isinstance(part, MIXERS) for part in module.modules())


def norm_width(norm: nn.Module) -> int | None:
    """Return how many channels a norm has, None if it doesn't learn a scale for each."""
    weight = getattr(norm, "weight", None)
    return None if weight is None else weight.numel()


def copy_without_hooks(module: nn.Module) -> nn.Module:
    """Return a copy that calls nobody: hooks are others' business."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return twin


def channel_axis(module: nn.Module, shape: tuple[int, ...], width: int) -> int | None:
    """Return on which axis a norm, an attention or an MLP that is called on a shape has its channels.

    Args:
        module: The module.
        shape: Shape of the tokens that it is called on.
        width: Token width D.

    Returns:
        -1 for ``(B, *N, D)``, 1 for ``(B, D, *N)``, None if it is neither.

    Example:
        >>> channel_axis(nn.LayerNorm(8), (2, 8, 8), 8), channel_axis(nn.Conv2d(8, 8, 1), (2, 8, 4, 4), 8)
        (-1, 1)
    """
    fitting = [axis for axis in (-1, 1) if len(shape) > 2 and shape[axis] == width]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    if is_norm(module):
        return _axis_of_scale(module, shape)
    first = next((part for part in module.modules() if isinstance(part, MIXERS)), None)
    return 1 if isinstance(first, (nn.Conv1d, nn.Conv2d)) else -1


@torch.no_grad()
def acts_on_each_position(norm: nn.Module, shape: tuple[int, ...], width: int) -> bool:
    """Whether a norm treats each place of tokens alone, as LayerNorm does and GroupNorm doesn't.

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
    """Return along which axis a norm's scale acts: where the result changes if that of one channel does."""
    twin, x = _twin_and_tokens(norm, shape)
    before = twin(x)
    if norm_width(norm) is None:
        power = before.square().mean(-1)
        return -1 if torch.allclose(power, torch.ones_like(power), atol=0.05) else 1
    twin.weight[0] = 3
    changed = twin(x) != before
    return -1 if changed[..., 1:].sum() == 0 else 1


def _twin_and_tokens(norm: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, torch.Tensor]:
    """Return a copy of a norm, with all that it has learned put to 1, and tokens of one image."""
    twin = copy_without_hooks(norm).to_empty(device="cpu").float().eval()
    for tensor in (*twin.parameters(), *twin.buffers()):
        tensor.fill_(1)
    return twin, torch.randn(1, *shape[1:], generator=torch.Generator().manual_seed(0))
