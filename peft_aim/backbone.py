"""Surveys an image model: where images go in, which blocks they pass, and where class scores come out."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.anatomy import Anatomy, NotABlock, PartNames, examine, has_attention, is_norm, looks_like_a_block
from peft_aim.probes import check_alike, check_places_stay, misbuilt
from peft_aim.trace import Call, Handle, trace

TEXT_ARGUMENTS = {"input_ids", "text"}


@dataclass(frozen=True)
class Survey:
    """What an image model is made of.

    Attributes:
        tower: Name of the part that takes images; "" is the whole model, something else the image tower of a model
            that takes text as well.
        channels: Number of channels C of an image.
        blocks: The blocks that AIM can adapt, by name, in the order in which they run.
        refused: Attention blocks that it can't, by name, with the reason.
        pre_norm: Name of the norm between position embedding and first block (CLIP), if there is one.
        head: Name of the last layer, whose output is the class scores, if there is one.
        features: Width of what the head takes.
    """

    tower: str
    channels: int
    blocks: dict[str, Anatomy]
    refused: dict[str, str]
    pre_norm: str | None
    head: str | None
    features: int | None

    @property
    def first_block(self) -> str:
        """Name of the block that runs first."""
        return next(iter(self.blocks))


def survey(model: nn.Module, names: PartNames) -> Survey:
    """Run a model once on a blank image and find its blocks by how they are called.

    Args:
        model: The image model, or one of image and text.
        names: Names of parts inside the blocks that the user has given.

    Raises:
        ValueError: If it takes no images, cannot be run on one, or has no block that AIM can adapt.
    """
    stem_name, stem = _stem(model)
    tower_name, tower = _tower(model, stem_name)
    size = image_size(tower)
    images = torch.zeros(2, stem.in_channels, *size, device=stem.weight.device, dtype=stem.weight.dtype)
    try:
        root, output = trace(tower, images)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} could not be run on a blank image {tuple(images.shape)} to find its blocks: "
            f"{type(error).__name__}: {error}. If its images have another size, say so with model.image_size = (H, W)."
        ) from error
    calls = list(root.walk())
    for call in calls:  # names as seen from the whole model
        call.name = ".".join(filter(None, (tower_name, call.name)))
    blocks, refused, seen = _blocks(calls, len(images), names)
    if blocks:
        check_alike(model, output)
        check_places_stay(tower, images, calls, blocks)
    explained = names.attention and names.mlp  # by the user, whose word counts
    if blocks and not explained and stem.weight.device.type != "meta":
        drawn = torch.randn(images[:1].shape, generator=torch.Generator().manual_seed(0)).to(images)
        wrong = misbuilt(model, tower, drawn, blocks)
        refused.update(wrong)
        seen.update(wrong)
        blocks = {name: anatomy for name, anatomy in blocks.items() if name not in wrong}
    if not blocks:
        raise ValueError(_no_blocks(model, seen))
    head = _head(calls, output) if tower is model else None
    return Survey(
        tower=tower_name,
        channels=stem.in_channels,
        blocks=blocks,
        refused=refused,
        pre_norm=_pre_norm(calls, next(iter(blocks))),
        head=head and head.name,
        features=head and head.given.shape[-1],
    )


def image_size(model: nn.Module) -> tuple[int, int]:
    """Return the height and width of the images that a model is made for, 224 x 224 where it doesn't say."""
    found = [getattr(module, name, None) for module in model.modules() for name in ("img_size", "image_size")]
    found.append(getattr(getattr(model, "config", None), "image_size", None))
    found.append((getattr(model, "pretrained_cfg", None) or {}).get("input_size"))
    for size in found:
        if isinstance(size, int) and not isinstance(size, bool):
            return size, size
        if isinstance(size, (tuple, list)) and len(size) >= 2:
            return tuple(size[-2:])
    return 224, 224


def _stem(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the convolution that turns an image into patches: the first one of the model."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise ValueError(
        f"{type(model).__name__} has no Conv2d, by which AIM finds where images enter a model and become patches. "
        "Models of text or video, and those that embed patches in another way, cannot be adapted."
    )


def _tower(model: nn.Module, stem_name: str) -> tuple[str, nn.Module]:
    """Return the outermost module around the stem that takes no text."""
    path = stem_name.split(".")
    for depth in range(len(path)):
        name = ".".join(path[:depth])
        module = model.get_submodule(name)
        callable_itself = type(module).forward is not nn.Module.forward
        if callable_itself and not TEXT_ARGUMENTS & set(inspect.signature(module.forward).parameters):
            return name, module
    raise ValueError(f"No module around {stem_name} in {type(model).__name__} takes images alone.")


def _blocks(calls: list[Call], images: int, names: PartNames) -> tuple[dict, dict, dict]:
    """Sort what looks like a block into adaptable blocks, refused attention blocks, and all refused ones."""
    blocks: dict[str, Anatomy] = {}
    seen: dict[str, str] = {}
    refused: dict[str, str] = {}
    kinds: dict[tuple, Any] = {}
    for call in filter(looks_like_a_block, calls):
        if any(call.name.startswith(f"{block}.") for block in blocks):
            continue
        try:
            blocks[call.name] = examine(call, images, names, kinds)
        except NotABlock as reason:
            seen[call.name] = str(reason)
            if has_attention(call):
                refused[call.name] = str(reason)
    twice = [name for name in blocks if sum(call.name == name for call in calls) > 1]
    for name in twice:
        del blocks[name]
        seen[name] = refused[name] = "it runs more than once in a forward pass"
    return blocks, refused, seen


def _no_blocks(model: nn.Module, seen: dict[str, str]) -> str:
    outermost = [name for name in seen if not any(name.startswith(f"{other}.") for other in seen)]
    reasons = listed({name: seen[name] for name in outermost})
    found = f"These look like blocks, but:{reasons}" if seen else "Nothing in it looks like a block."
    return (
        f"No block that AIM can adapt was found in {type(model).__name__}. AIM needs x + attention(norm1(x)) followed "
        f"by x + mlp(norm2(x)). {found}\nIf its parts are there under unusual names, name them with norm1_module, "
        "attention_module, norm2_module and mlp_module; a convolutional network cannot be adapted."
    )


def listed(reasons: dict[str, str]) -> str:
    """Return lines that name blocks and the reason that they share.

    Example:
        >>> print(listed({"a": "too small", "b": "too small", "c": "too large"}))
        <BLANKLINE>
          a, b: too small
          c: too large
    """
    blocks = defaultdict(list)
    for name, reason in reasons.items():
        blocks[reason].append(name)
    lines = [
        f"\n  {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}: {reason}"
        for reason, names in blocks.items()
    ]
    more = f"\n  ... and {len(lines) - 8} other reasons" if len(lines) > 8 else ""
    return "".join(lines[:8]) + more


def _pre_norm(calls: list[Call], first_block: str) -> str | None:
    """Return the norm whose output enters the first block, if it belongs to the trunk, not to the patch embedding."""
    first = next(call for call in calls if call.name == first_block)
    for call in calls[: calls.index(first)]:
        parent = call.name.rpartition(".")[0]
        around = not parent or first_block.startswith(f"{parent}.")
        if around and is_norm(call.module) and call.returned == first.given:
            return call.name
    return None


def _head(calls: list[Call], output: Any) -> Call | None:
    """Return the call of the last linear layer (or of an identity in its place) if the scores come right from it."""
    scores = Handle.of(_scores(output))
    for kind in (nn.Linear, nn.Identity):
        made = [c for c in calls if isinstance(c.module, kind) and scores is not None and c.returned == scores]
        if made and len(scores.shape) == 2:
            return made[-1]
    return None


def _scores(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):
        return output.get("logits")
    return output
