"""Runs the skeleton of an image model, to observe where tokens go without computing them.

Blocks return their input, and layers outside of blocks return zeros of their traced output shape, so almost no
arithmetic is left. NaN marks the tokens of one image, or the output of one block: it propagates to everything that
depends on them.
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
    Call,
    Images,
    first_argument,
    first_parameter,
    first_tensor,
    is_mixer,
    replace_first,
    run,
    running,
    standing_in,
    tensors_in,
)

Blocks = dict[str, tuple[Call, Anatomy]]
OUTPUT = ""  # the model's own name


@dataclass(frozen=True)
class Arrived:
    """The tokens that a block receives, or the tensors that the model returns.

    Attributes:
        shape: Shape of the tokens.
        marked: For each entry of the leading axis, or for each returned tensor, whether it contains NaN.
    """

    shape: tuple[int, ...]
    marked: tuple[bool, ...]


@torch.no_grad()
def run_skeleton(
    tower: nn.Module, images: Images, root: Call, blocks: Blocks, training: bool = False, source: str | None = None
) -> dict[str, Arrived]:
    """Run the skeleton of an image model on the images that it was traced on, or on others of the same shape.

    Args:
        tower: The part of the model that takes images.
        images: Its arguments; an image of NaN is marked.
        root: Its traced call.
        blocks: Its blocks.
        training: Whether to run in training mode.
        source: Name of a block whose output is marked.

    Returns:
        The tokens that each block receives, by name, and under :data:`OUTPUT` what the model returns.
    """
    arrived: dict[str, Arrived] = {}
    stand_ins: dict[nn.Module, Callable[..., Any]] = {
        call.module: partial(_pass_on, call, arrived, name == source) for name, (call, _) in blocks.items()
    }
    for module, calls in _layers_outside(root, {call for call, _ in blocks.values()}).items():
        stand_ins[module] = partial(_blank, calls, module.forward)
    with running(tower, training), standing_in(stand_ins):
        output = [tensor for tensor in tensors_in(run(tower, images)) if tensor.is_floating_point()]
    arrived[OUTPUT] = Arrived((), tuple(bool(tensor.isnan().any()) for tensor in output))
    return arrived


def _layers_outside(root: Call, blocks: set[Call]) -> dict[nn.Module, list[Call]]:
    """Return the calls of layers that mix features outside of blocks, by layer."""
    found: dict[nn.Module, list[Call]] = defaultdict(list)

    def collect(call: Call) -> None:
        if is_mixer(call.module) and call.returned is not None:
            found[call.module].append(call)
        elif call not in blocks:
            for child in call.children:
                collect(child)

    collect(root)
    return found


def _pass_on(call: Call, arrived: dict[str, Arrived], is_source: bool, *args: Any, **kwargs: Any) -> Any:
    """Return a block's input, in the form of its output, with the marks of other tokens that it takes."""
    tokens = first_tensor(first_argument(first_parameter(call.module), args, kwargs))
    others = [other for other in tensors_in((args, kwargs)) if other is not tokens and other.is_floating_point()]
    arrived[call.name] = Arrived(tuple(tokens.shape), tuple(_marked(tokens).tolist()) if tokens.numel() else ())
    tokens = tokens.clone(memory_format=torch.contiguous_format)
    for marks in (_marked(other) for other in others if other.numel() and len(other) == len(tokens)):
        tokens[marks] = torch.nan
    return replace_first(call.form, tokens.fill_(torch.nan) if is_source else tokens)


def _blank(calls: list[Call], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return zeros with the marks of the input if the layer was traced on this shape; run it otherwise."""
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
    """Return for each entry of the leading axis whether it contains NaN."""
    return tensor.isnan().flatten(1).any(1) if tensor.ndim > 1 else tensor.isnan()
