"""Finds the batch axis of tokens, ``(B, N, D)`` or ``(N, B, D)``, by running the skeleton of a model."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from torch import nn

from peft_aim.backbone.anatomy import Anatomy
from peft_aim.backbone.skeleton import SECOND_IMAGE, run_skeleton
from peft_aim.tracing import Call, Images, tensors_in


def find_batch_axes(tower: nn.Module, images: Images, root: Call) -> dict[Call, int]:
    """Return the batch axis of the tokens that each module of a model is called on.

    Where the shape leaves two possibilities, as of 50 tokens of 2 images, ``(50, 2, D)``, the tokens that depend on
    the second image tell. If no token depends on it, an axis as long as the batch is preferred to one that may be
    split into patch groups.

    Args:
        tower: The part of the model that takes images.
        images: Its arguments, for two images.
        root: Its traced call.

    Returns:
        0 or 1 by call; calls without a possible axis are left out.
    """
    first = next(iter(images.values()))
    possible = {call: _possible(call, len(first)) for call in root.walk()}
    unclear = [call for call, axes in possible.items() if len(axes) > 1]
    arrived = {}
    if unclear and first.device.type != "meta":
        with suppress(Exception):  # code of the blocks that fails on other numbers
            arrived = run_skeleton(tower, images, root, {}, marked=SECOND_IMAGE, watched=unclear)
    found = {}
    for call, axes in possible.items():
        tokens = arrived.get(call.name) if len(axes) > 1 else None
        seen = [axis for axis in axes if tokens is not None and tokens.is_of_second_image(axis)]
        preferred = [axis for axis in axes if call.given.shape[axis] == len(first)]
        if axes:
            found[call] = (seen or preferred or axes)[0]
    return found


def check_batch_first(model: nn.Module, output: Any, blocks: Iterable[Anatomy]) -> None:
    """Check that a model with tokens (N, B, D) does not return those of several layers, (L, N, B, D) or (L, B, N, D).

    Args:
        model: The image model.
        output: Its output for two images.
        blocks: The parts of its blocks.

    Raises:
        ValueError: If it does: with as many layers as frames, layers would be averaged.
    """
    if not any(anatomy.tokens.batch == 1 for anatomy in blocks):
        return
    for tensor in tensors_in(output):
        shape = tuple(tensor.shape)
        if len(shape) > 3 and (shape[1] == 2 or (shape[0] != 2 and shape[2] == 2)):
            raise ValueError(
                f"{type(model).__name__} returns a tensor {shape} for 2 images, whose leading axis is not the batch, "
                "so it cannot be averaged over frames. Use a model whose outputs all start with the batch."
            )


def _possible(call: Call, images: int) -> list[int]:
    """Return the axes that the shape of a call's tokens allows."""
    shape = () if call.given is None else call.given.shape
    if len(shape) < 3:
        return []
    found = [0] if shape[0] % images == 0 else []
    return [*found, 1] if len(shape) == 3 and shape[1] == images else found
