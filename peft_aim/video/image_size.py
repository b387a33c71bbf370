"""Let a backbone take images of another size than it was pretrained on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from peft_aim.tracing import blank_images, run, running

INTERPOLATE = "interpolate_pos_encoding"  # transformers' argument, off by default


def set_image_size(model: nn.Module, side: int, pretrained: tuple[int, int]) -> None:
    """Make a model take images of another size, and check that it does.

    Position embeddings of timm and open_clip are resampled when their weights are loaded. Models of transformers
    interpolate theirs in each call, so that their weights stay the same at every size, but only if they are asked to:
    afterwards they always do.

    Args:
        model: The model; ``model.image_size`` is set, which the inspection reads.
        side: Image height and width.
        pretrained: Image height and width in pretraining.

    Raises:
        ValueError: If the model does not support the size.
    """
    for module in _interpolating(model):
        module.register_forward_pre_hook(_interpolated, with_kwargs=True)
    model.image_size = side
    error = _error_on_blank_images(model)
    if error:
        raise ValueError(
            f"{type(model).__name__} does not take images of {side} x {side} pixels ({type(error).__name__}: "
            f"{error}). Its own size is {pretrained[0]} x {pretrained[1]} pixels: leave out image_size "
            "(--image-size), or try another."
        ) from error


def _interpolating(module: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the outermost modules that can interpolate their position embedding; they ask the inner ones."""
    if INTERPOLATE in inspect.signature(module.forward).parameters:
        yield module
        return
    for child in module.children():
        yield from _interpolating(child)


def _interpolated(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return args, {INTERPOLATE: True, **kwargs}


def _error_on_blank_images(model: nn.Module) -> Exception | None:
    """Run a model on blank images of its size; return the error, if it takes them in no form."""
    errors = []
    for images in blank_images(model):
        try:
            with running(model, training=False):
                run(model, images)
        except Exception as error:
            errors.append(error)
        else:
            return None
    return errors[0]
