"""What a block keeps for backward, and what it computes again there: memory for arithmetic, by one setting.

Results and gradients are the same whatever the setting. All is torch's own selective checkpointing
(:func:`torch.utils.checkpoint.create_selective_checkpoint_contexts`); what is here is the choice of what is kept.
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

# By setting, from most memory to least.
SETTINGS = {
    "nothing": "keep all that autograd asks for",
    "pointwise": "compute norms and activations again, but no product (behind LayerScale, the joint adapter's second)",
    "mlp": "also the hidden layer of the MLP, short attention, and the temporal adapter's second layer",
    "block": "all of it: keep a block's input alone",
}
ORDER = list(SETTINGS)
SHORT = 64  # tokens: attention over fewer costs less than a sixth of one projection of 768 features
# What is kept passes the user's hooks on saved tensors (save_on_cpu), where torch knows how.
HOOKS = {name: True for name in signature(checkpoint).parameters if name == "respect_saved_tensors_hooks"}
WEIGHT = {"aten::mm": 1, "aten::addmm": 2, "aten::convolution": 1}  # which argument it is

Widths = frozenset[tuple[int, int]]


def hidden_widths(mlp: nn.Module, width: int) -> Widths:
    """Return the widths in and out of the layers of an MLP whose results don't have the width of tokens.

    Example:
        >>> hidden_widths(nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2)), width=2)
        frozenset({(2, 8)})
    """
    shapes = [parameter.shape for parameter in mlp.parameters() if parameter.ndim > 1]
    return frozenset((shape[1], shape[0]) for shape in shapes if shape[0] != width)


def recomputing(setting: str, hidden: Widths, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a part of a model, and keep for backward what a setting says.

    Args:
        setting: One of :data:`SETTINGS` but "nothing".
        hidden: Widths in and out of the layers that lead into the MLP's hidden layer.
        function: The part.
        args: Its arguments.
        kwargs: Its arguments by name.

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
    """Tell torch whether to keep the result of an operation: it keeps products that cost more than they are worth.

    Layers are told by their widths, which hold under autocast, in shards and while compiling.

    Args:
        setting: "pointwise" or "mlp".
        hidden: See :func:`recomputing`.
        context: Not looked at.
        operation: The operation.
        args: Its arguments.
        kwargs: Its arguments by name.
    """
    name = operation.name().partition(".")[0]
    if name == "aten::_unsafe_view":  # a product under another shape; torch notes there if it is changed in place
        return CheckpointPolicy.MUST_SAVE if _noted.kept else CheckpointPolicy.PREFER_RECOMPUTE
    if "attention" in name:
        cheap = setting == "mlp" and args[0].shape[-2] <= SHORT
    elif "bmm" in name:  # attention that is no kernel of its own: scores and probabilities are large
        cheap = setting == "mlp"
    elif name in WEIGHT:
        cheap = _is_cheap_layer(setting, hidden, name, args[WEIGHT[name]])
    else:
        cheap = operation.overloadpacket not in flop_registry
    _noted.kept = not cheap
    return CheckpointPolicy.PREFER_RECOMPUTE if cheap else CheckpointPolicy.MUST_SAVE


def _is_cheap_layer(setting: str, hidden: Widths, name: str, weight: Tensor) -> bool:
    widths = tuple(weight.shape) if "mm" in name else (weight.shape[1], weight.shape[0])
    widens = widths[0] < widths[1]
    if widens and _noted.cheap_from is not None:  # the second layer of an adapter
        return ORDER.index(_noted.cheap_from) <= ORDER.index(setting)
    return setting == "mlp" and widths in hidden


class _Noted(threading.local):
    """What is known in this thread of the operation that comes next."""

    kept = False  # the result before it
    cheap_from: str | None = None


_noted = _Noted()


@contextmanager
def cheap_from(setting: str) -> Iterator[None]:
    """Mark an adapter's second layer as one whose result is not kept, from a setting on."""
    if torch.compiler.is_compiling():  # the compiler finds out for itself
        yield
        return
    before, _noted.cheap_from = _noted.cheap_from, setting
    try:
        yield
    finally:
        _noted.cheap_from = before
