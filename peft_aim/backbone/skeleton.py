"""Runs the skeleton of an image model, to see where tokens go without computing them.

Blocks return what they get, and layers that mix features return zeros of the shape that they are known to return, so
hardly any arithmetic is left. Not-a-number marks what comes from one image or one block: it spreads to all that
depends on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.backbone.anatomy import Anatomy
from peft_aim.tracing import (
    MIXERS,
    Call,
    Images,
    first_argument,
    first_parameter,
    first_tensor,
    replace_first,
    run,
    running,
    standing_in,
    tensors_in,
)

Blocks = dict[str, tuple[Call, Anatomy]]


@dataclass(frozen=True)
class Arrived:
    """What arrives at a block.

    Attributes:
        shape: Shape of the tokens.
        marked: Which of them, along the leading axis, have a mark.
    """

    shape: tuple[int, ...]
    marked: tuple[bool, ...]


@torch.no_grad()
def run_skeleton(
    tower: nn.Module, images: Images, root: Call, blocks: Blocks, training: bool = False, source: str | None = None
) -> dict[str, Arrived]:
    """Run the skeleton of an image model on the images that it was traced on, or on others of their shape.

    Args:
        tower: The part of the model that takes images.
        images: What it takes; what is not a number marks an image.
        root: Its traced call.
        blocks: Its blocks.
        training: Whether it runs as in training.
        source: Name of a block whose tokens are marked when they leave it.

    Returns:
        What arrives at each block, by name.
    """
    arrived: dict[str, Arrived] = {}
    stand_ins: dict[nn.Module, Callable[..., Any]] = {
        call.module: partial(_pass_on, call, arrived, name == source) for name, (call, _) in blocks.items()
    }
    for module, calls in _layers_outside(root, {call for call, _ in blocks.values()}).items():
        stand_ins[module] = partial(_blank, calls, module.forward)
    with running(tower, training), standing_in(stand_ins):
        run(tower, images)
    return arrived


def _layers_outside(root: Call, blocks: set[Call]) -> dict[nn.Module, list[Call]]:
    """Return the calls of layers that mix features, outside of blocks, by the layer."""
    found: dict[nn.Module, list[Call]] = defaultdict(list)

    def collect(call: Call) -> None:
        if isinstance(call.module, MIXERS) and call.returned is not None:
            found[call.module].append(call)
        elif call not in blocks:
            for child in call.children:
                collect(child)

    collect(root)
    return found


def _pass_on(call: Call, arrived: dict[str, Arrived], is_source: bool, *args: Any, **kwargs: Any) -> Any:
    """Return what a block gets, in the form of what it returns."""
    tokens = first_tensor(first_argument(first_parameter(call.module), args, kwargs))
    arrived[call.name] = Arrived(tuple(tokens.shape), tuple(_marked(tokens).tolist()) if tokens.numel() else ())
    tokens = tokens.clone(memory_format=torch.contiguous_format)
    return replace_first(call.form, tokens.fill_(torch.nan) if is_source else tokens)


def _blank(calls: list[Call], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return zeros, and marks where there are some, if a layer is called as it was before; else run it."""
    given = [tensor for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()]
    known = next((call for call in calls if given and call.given and call.given.shape == given[0].shape), None)
    if known is None:
        return forward(*args, **kwargs)
    output = known.returned.zeros()
    for tensor in given:
        marked = _marked(tensor)
        output[marked if len(marked) == len(output) else slice(None) if marked.any() else slice(0)] = torch.nan
    return replace_first(known.form, output)


def _marked(tensor: Tensor) -> Tensor:
    """Return which entries of the leading axis hold anything that is not a number."""
    return tensor.isnan().flatten(1).any(1) if tensor.ndim > 1 else tensor.isnan()
