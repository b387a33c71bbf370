"""The layout of the tokens of a module whose parts are not known: all that a convolution over time needs."""

from __future__ import annotations

from peft_aim.backbone.anatomy import Anatomy
from peft_aim.tracing import Call, channel_axis, input_width, mixes


def layout(call: Call, images: int) -> Anatomy | None:
    """Return the layout of the tokens of any module, without its parts.

    Args:
        call: A traced call of the module.
        images: Number of images in the traced batch.

    Returns:
        An anatomy without parts. None if the module does not map tokens to tokens of the same shape, or if the
        leading axis is not the batch or the channel axis is unclear.
    """
    if call.given is None or call.returned is None or not mixes(call.module):
        return None
    shape = call.given.shape
    if len(shape) < 3 or call.returned.shape != shape or shape[0] % images:
        return None
    for layer in call.walk():
        same = layer.given is not None and layer.given.numel == call.given.numel
        width = input_width(layer.module) if same else None
        if width is None:
            continue
        if layer.given == call.given and layer.given.shape == shape:
            axis = channel_axis(layer.module, shape, width)
        else:  # on the same tokens in another layout, which cannot tell an axis from another of the same size
            fitting = [axis for axis in (-1, 1) if shape[axis] == width]
            axis = fitting[0] if len(fitting) == 1 else None
        if axis is not None:
            nothing = (None, None, None, None, None)
            return Anatomy(*nothing, width=width, attend=None, channels=axis, groups=shape[0] // images)
    return None
