"""Gives image towers that end in a bare matrix, as open_clip's do, a place where an adapter can put its head."""

from __future__ import annotations

from torch import Tensor, nn

from peft_aim.backbone import Inspection, PartNames, inspect_backbone
from peft_aim.convert.observe import Observed, observe, relative_difference
from peft_aim.convert.same_equations import TOLERANCE, class_token
from peft_aim.tracing import image_size


def with_place_for_head(model: nn.Module) -> nn.Module:
    """Return an image model whose output comes straight from a linear layer, or from an identity in its place.

    A model that has one is returned as it is. Of a model that takes text, too, it is the image tower. A tower without
    one gets an identity behind it; a projection at its end, a parameter by which the class token behind the final norm
    is multiplied, is switched off for good: the tower given is modified. Weights saved of an adapter on what is
    returned are for ``with_place_for_head(tower)`` again.

    Args:
        model: The image model, or one of image and text.

    Raises:
        ValueError: If it has no place for a head, and does not return the class token behind its final norm, with or
            without projection.

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
    wrapped.training = tower.training  # and not by train(), for parts of the tower may have modes of their own
    return wrapped


def _switch_off_projection(tower: nn.Module, found: Inspection) -> None:
    """Let a tower return its class token behind the final norm, (B, D)."""
    seen = observe(tower, found)
    pooled = class_token(tower, found, seen)
    if _returns(seen, pooled):
        return
    for name, matrix in tower.named_parameters(recurse=False):
        projects = matrix.ndim == 2 and matrix.shape[0] == pooled.shape[-1]
        if not projects or not _returns(seen, pooled @ matrix.detach()):
            continue
        setattr(tower, name, None)
        if _still_returns(tower, found, pooled):
            return
        setattr(tower, name, matrix)
    what = f"a tensor {tuple(seen.output.shape)}" if isinstance(seen.output, Tensor) else type(seen.output).__name__
    raise ValueError(
        f"{type(tower).__name__} returns {what}, which is neither the class token behind its final norm "
        f"{found.final_norms[0]!r} nor a projection of it by one of its own parameters, so there is no place for a "
        "head. Use a variant that ends in a linear layer (transformers: CLIPVisionModelWithProjection), or one whose "
        "output is the class token."
    )


def _returns(seen: Observed, expected: Tensor) -> bool:
    return isinstance(seen.output, Tensor) and relative_difference(seen.output, expected) <= TOLERANCE


def _still_returns(tower: nn.Module, found: Inspection, expected: Tensor) -> bool:
    try:
        return _returns(observe(tower, found), expected)
    except Exception:  # its forward cannot do without
        return False
