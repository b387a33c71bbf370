"""Finds the batch axis of tokens, ``(B, N, D)`` or ``(N, B, D)``, by running the skeleton of a model."""

from __future__ import annotations

from contextlib import suppress

from torch import nn

from peft_aim.backbone.skeleton import SECOND_IMAGE, run_skeleton
from peft_aim.tracing import Call, Images


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


def _possible(call: Call, images: int) -> list[int]:
    """Return the axes that the shape of a call's tokens allows."""
    shape = () if call.given is None else call.given.shape
    if len(shape) < 3:
        return []
    found = [0] if shape[0] % images == 0 else []
    return [*found, 1] if len(shape) == 3 and shape[1] == images else found
