"""The layout of the tokens of a module whose parts are not known: all that a convolution over time needs."""

from __future__ import annotations

from torch import nn

from peft_aim.backbone.anatomy import Anatomy
from peft_aim.tracing import Call, Layout, channel_axis, input_width, is_norm, mixes


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
    if call.given is None or call.returned is None or not mixes(call.module):
        return None
    shape = call.given.shape
    if batch is None or call.returned.shape != shape:
        return None
    layers = [layer for layer in call.walk() if layer.given is not None and input_width(layer.module) is not None]
    own = [layer for layer in layers if layer.given == call.given and layer.given.shape == shape]
    axis = _axis_of_first(own, shape) if own else _axis_of_norms(layers, call)
    if axis is None:
        return None
    parts = (None, None, None, None, None)
    return Anatomy(*parts, width=shape[axis], attend=None, tokens=Layout(batch, axis, shape[batch] // images))


def _axis_of_first(own: list[Call], shape: tuple[int, ...]) -> int | None:
    """Return the channel axis by the first layer that is called on the module's own tokens."""
    first = own[0].module
    width = input_width(first)
    tells = is_norm(first) or isinstance(first, (nn.Conv1d, nn.Conv2d))  # a linear layer may take transposed tokens
    return channel_axis(first, shape, width) if tells or shape[1] != shape[-1] else None


def _axis_of_norms(layers: list[Call], call: Call) -> int | None:
    """Return the channel axis by the norms of the same tokens in another layout, if they fit one axis only.

    Other layers prove nothing: a token-mixing MLP takes as many features as there are positions.
    """
    norms = [layer for layer in layers if is_norm(layer.module) and layer.given.numel == call.given.numel]
    fitting = {axis for layer in norms for axis in (-1, 1) if call.given.shape[axis] == input_width(layer.module)}
    return fitting.pop() if len(fitting) == 1 else None
