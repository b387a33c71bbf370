"""Finds the channel axis of the tokens of a module whose parts are not known."""

from __future__ import annotations

from torch import nn

from peft_aim.tracing import Call, channel_axis, input_width, is_norm


def axis_of_tokens(call: Call) -> int | None:
    """Return the channel axis, -1 or 1, of the tokens that a module is called on, None if it is unclear.

    Args:
        call: A traced call of the module.
    """
    shape = call.given.shape
    layers = [layer for layer in call.walk() if layer.given is not None and input_width(layer.module) is not None]
    own = [layer for layer in layers if layer.given == call.given and layer.given.shape == shape]
    return _axis_of_first(own, shape) if own else _axis_of_norms(layers, call)


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
