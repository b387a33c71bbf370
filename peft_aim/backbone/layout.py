"""The layout of the tokens of a module whose parts are not known: all that a convolution over time needs."""

from __future__ import annotations

from peft_aim.backbone.anatomy import Anatomy
from peft_aim.backbone.axes import axis_of_tokens
from peft_aim.tracing import Call, Layout, mixes


def layout(call: Call, images: int, batch: int | None) -> Anatomy | None:
    """Return the layout of the tokens of any module, without its parts.

    Args:
        call: A traced call of the module.
        images: Number of images in the traced batch.
        batch: The batch axis of the module's tokens, None if there is none.

    Returns:
        An anatomy without parts. None if the module does not map tokens to tokens of the same shape, or if the batch
        or channel axis is unclear.
    """
    if not call.takes_tensor or call.returned is None or not mixes(call.module):
        return None
    shape = call.given.shape
    if batch is None or call.returned.shape != shape:
        return None
    axis = axis_of_tokens(call)
    if axis is None:
        return None
    parts = (None, None, None, None, None)
    return Anatomy(*parts, width=shape[axis], attend=None, tokens=Layout(batch, axis, shape[batch] // images))
