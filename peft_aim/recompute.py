"""Activation checkpointing of blocks: which activations are saved in forward, and which are recomputed in backward.

Results and gradients are the same with all settings. The checkpointing is torch's own
(:func:`torch.utils.checkpoint.create_selective_checkpoint_contexts`); this module decides what is saved.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import flop_registry

from peft_aim.tracing import is_packed

# From most activation memory to least.
SETTINGS = {
    "nothing": "save all activations",
    "pointwise": "recompute norms and activation functions, but no matrix product (except the joint adapter's second "
    "layer in blocks with LayerScale)",
    "mlp": "also recompute the hidden layer of the MLP, attention over few tokens, and the temporal adapter's second "
    "layer",
    "block": "save only a block's input, recompute everything else",
}
ORDER = list(SETTINGS)
SHORT = 64  # tokens; attention over at most that many costs less than a sixth of a projection of 768 features
# Saved activations pass the user's hooks on saved tensors (save_on_cpu), if this torch supports it.
HOOKS = {name: True for name in signature(checkpoint).parameters if name == "respect_saved_tensors_hooks"}
WEIGHT = {"aten::mm": 1, "aten::addmm": 2, "aten::convolution": 1}  # position of the weight among the arguments

Widths = frozenset[tuple[int, int]]


def hidden_widths(mlp: nn.Module, width: int) -> Widths:
    """Return the input and output widths of the layers of an MLP whose output does not have the token width.

    Example:
        >>> hidden_widths(nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2)), width=2)
        frozenset({(2, 8)})
    """
    widths: list[tuple[int, int]] = []
    for part in mlp.modules():
        if is_packed(part):
            widths.append((part.in_features, part.out_features))
        else:
            widths += [(p.shape[1], p.shape[0]) for p in part.parameters(recurse=False) if p.ndim > 1]
    return frozenset((inner, outer) for inner, outer in widths if outer != width)


def recomputing(setting: str, hidden: Widths, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a part of a model with activation checkpointing.

    Args:
        setting: One of :data:`SETTINGS`, except "nothing".
        hidden: Input and output widths of the layers that compute the MLP's hidden layer.
        function: The part.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Example:
        >>> x, layer = torch.ones(1, 2, requires_grad=True), nn.Linear(2, 2)
        >>> torch.equal(recomputing("block", frozenset(), layer, x), layer(x))
        True
    """
    if setting == "block":
        return checkpoint(function, *args, use_reentrant=False, **kwargs)
    contexts = partial(create_selective_checkpoint_contexts, partial(choose, setting, hidden))
    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **HOOKS, **kwargs)


def choose(setting: str, hidden: Widths, context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Decide whether torch saves the result of an operation: products are saved unless a setting makes them cheap.

    Layers are recognized by their widths, which works under autocast, with shards and in compilation.

    Args:
        setting: "pointwise" or "mlp".
        hidden: See :func:`recomputing`.
        context: Unused.
        operation: The operation.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    name = operation.name().partition(".")[0]
    if name == "aten::_unsafe_view":  # a reshaped product, on which torch detects changes in place
        return CheckpointPolicy.MUST_SAVE if _noted.saved else CheckpointPolicy.PREFER_RECOMPUTE
    if "attention" in name:
        cheap = setting == "mlp" and args[0].shape[-2] <= SHORT
    elif "bmm" in name:  # attention without a fused kernel, whose scores and probabilities are large
        cheap = setting == "mlp"
    elif name in WEIGHT:
        cheap = _is_cheap_layer(setting, hidden, name, args[WEIGHT[name]])
    else:
        cheap = operation.overloadpacket not in flop_registry
    _noted.saved = not cheap
    return CheckpointPolicy.PREFER_RECOMPUTE if cheap else CheckpointPolicy.MUST_SAVE


def _is_cheap_layer(setting: str, hidden: Widths, name: str, weight: Tensor) -> bool:
    widths = tuple(weight.shape) if "mm" in name else (weight.shape[1], weight.shape[0])
    widens = widths[0] < widths[1]
    if widens and _noted.cheap_from is not None:  # the second layer of an adapter
        return ORDER.index(_noted.cheap_from) <= ORDER.index(setting)
    return setting == "mlp" and widths in hidden


class _Noted(threading.local):
    """State of this thread that decides on the next operation."""

    saved = False  # whether the previous result is saved
    cheap_from: str | None = None  # the setting from which on an adapter's second layer is recomputed


_noted = _Noted()


@contextmanager
def cheap_from(setting: str) -> Iterator[None]:
    """Mark an adapter's second layer as one that is recomputed, from a setting on."""
    if torch.compiler.is_compiling():  # the compiler decides that itself
        yield
        return
    before, _noted.cheap_from = _noted.cheap_from, setting
    try:
        yield
    finally:
        _noted.cheap_from = before
