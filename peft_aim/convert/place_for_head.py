"""Adds a slot for an adapter's head to image towers that end in a bare projection matrix, such as open_clip's."""

from __future__ import annotations

from torch import Tensor, nn

from peft_aim.backbone import Inspection, PartNames, inspect_backbone
from peft_aim.convert.observe import Observed, observe, relative_difference
from peft_aim.convert.same_equations import TOLERANCE, class_token
from peft_aim.tracing import image_size


def with_place_for_head(model: nn.Module) -> nn.Module:
    """Return an image model whose output is that of a linear layer, or of an identity in its place.

    A model that has such a slot for a head is returned unchanged. For a model of images and text, the image tower is
    returned. An image tower without a slot is followed by an identity; if it ends in a projection, a parameter that
    multiplies the class token after the final norm, the projection is removed permanently: the given tower is
    modified. An adapter saved for the returned model has to be loaded onto ``with_place_for_head(tower)`` again.

    Args:
        model: The image model, or a model of images and text.

    Raises:
        ValueError: If it has no slot for a head, and does not return the class token after its final norm, with or
            without a projection.

    Example:
        >>> import open_clip, torch
        >>> vision = dict(image_size=32, patch_size=8, width=32, layers=1, head_width=16)
        >>> text = dict(context_length=7, vocab_size=50, width=32, heads=2, layers=1)
        >>> model = with_place_for_head(open_clip.CLIP(24, vision, text))
        >>> model(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 32])
    """
    found = inspect_backbone(model, PartNames())
    if found.head is not None:
        return model
    tower = model.get_submodule(found.tower)
    if tower is not model:
        found = inspect_backbone(tower, PartNames())
        if found.head is not None:
            return tower
    size = image_size(model)
    _switch_off_projection(tower, found)
    wrapped = nn.Sequential(tower, nn.Identity())
    wrapped.image_size = size
    wrapped.training = tower.training  # not by train(), since parts of the tower may have modes of their own
    return wrapped


def _switch_off_projection(tower: nn.Module, found: Inspection) -> None:
    """Change a tower to return its class token after the final norm, (B, D)."""
    observed = observe(tower, found)
    pooled = class_token(tower, found, observed)
    if _returns(observed, pooled):
        return
    for name, matrix in tower.named_parameters(recurse=False):
        projects = matrix.ndim == 2 and matrix.shape[0] == pooled.shape[-1]
        if not projects or not _returns(observed, pooled @ matrix.detach()):
            continue
        setattr(tower, name, None)
        if _still_returns(tower, found, pooled):
            return
        setattr(tower, name, matrix)
    what = (
        f"a tensor {tuple(observed.output.shape)}"
        if isinstance(observed.output, Tensor)
        else type(observed.output).__name__
    )
    raise ValueError(
        f"{type(tower).__name__} returns {what}, which is neither the class token after its final norm "
        f"{found.final_norms[0]!r} nor a projection of it by one of its own parameters, so it has no slot for a "
        "head. Use a variant that ends in a linear layer (transformers: CLIPVisionModelWithProjection), or one whose "
        "output is the class token."
    )


def _returns(observed: Observed, expected: Tensor) -> bool:
    return isinstance(observed.output, Tensor) and relative_difference(observed.output, expected) <= TOLERANCE


def _still_returns(tower: nn.Module, found: Inspection, expected: Tensor) -> bool:
    try:
        return _returns(observe(tower, found), expected)
    except Exception:  # its forward needs the projection
        return False
