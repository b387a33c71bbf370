"""Converts checkpoints of the official AIM code to PEFT adapters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from peft_aim.backbone import Inspection, PartNames, inspect_backbone
from peft_aim.config import AIMConfig
from peft_aim.convert.observe import check_has_weights, observe
from peft_aim.convert.official import Official, read_official
from peft_aim.convert.place_for_head import with_place_for_head
from peft_aim.convert.same_equations import check_same_equations, mlp_layers
from peft_aim.convert.same_weights import check_nothing_else, check_same_size, pair_weights
from peft_aim.targets import check_free

ADAPTER = "default"


def from_official(
    checkpoint: str | os.PathLike | Mapping[str, Any], backbone: nn.Module, scale: float = 0.5
) -> PeftModel:
    """Add the adapter of an official checkpoint to its backbone.

    The layouts of CLIP and of ViT from IN-21K are supported. Official checkpoints contain the frozen weights, too:
    these are compared with the backbone's. Everything that weights do not show (activation, number of heads, readout)
    is compared by running both models.

    Args:
        checkpoint: Path of the ``.pth`` file, or its content. Code in the file is never run.
        backbone: The image model that the checkpoint was trained on, with its pretrained weights, from timm,
            transformers (``CLIPVisionModelWithProjection``, ``ViTForImageClassification``) or open_clip. It is
            modified, as by ``get_peft_model``. A backbone without a slot for a head is also modified by
            :func:`~peft_aim.convert.place_for_head.with_place_for_head`, even if it is rejected afterwards.
        scale: Factor s on the joint adapter, which is not stored in the checkpoint: 0.5 in the paper, and 1.0 for
            Something-Something v2.

    Returns:
        The adapted model in evaluation mode, with the adapter "default". Save the adapter with ``save_pretrained``.

    Raises:
        ValueError: If the file cannot be read or is not a supported checkpoint, or if the backbone is not the one it
            was trained on, with what differs.

    Example:
        >>> import timm
        >>> name = "vit_base_patch16_clip_quickgelu_224.openai"
        >>> backbone = timm.create_model(name, pretrained=True)  # doctest: +SKIP
        >>> from_official("vit_b_clip_8frame_k400.pth", backbone).save_pretrained("k400")  # doctest: +SKIP
    """
    file = read_official(checkpoint)
    config = _config(file, scale)
    check_free(backbone, ADAPTER)
    model = with_place_for_head(backbone)
    found = inspect_backbone(model, PartNames())
    _check_backbone(file, model, found)
    adapted = get_peft_model(model, config, adapter_name=ADAPTER)
    _fill(adapted, file, found)
    return adapted.eval()


def _config(file: Official, scale: float) -> AIMConfig:
    return AIMConfig(
        num_frames=file.temporal_embedding.shape[1],
        bottleneck_ratio=_ratio(file.bottleneck, file.width),
        temporal_adapters=file.temporal_adapters,
        temporal_embedding="input",
        temporal_conv=False,
        num_labels=len(file.head["bias"]),
        scale=scale,
        final_norm=True,
    )


def _ratio(bottleneck: int, width: int) -> float:
    """Return a ratio whose product with the width, rounded down, is the bottleneck width.

    Example:
        >>> _ratio(192, 768), int(49 * (1 / 49)), int(49 * _ratio(1, 49))
        (0.25, 0, 1)
    """
    ratio = bottleneck / width
    return ratio if int(width * ratio) == bottleneck else (bottleneck + 0.5) / width


def _check_backbone(file: Official, model: nn.Module, found: Inspection) -> None:
    """Check that a backbone is the one that a checkpoint was trained on."""
    check_has_weights(model)
    check_same_size(file, model, found)
    pairs = pair_weights(file, model, found)
    layers = mlp_layers(pairs, file)
    observed = observe(model, found, [name for pair in layers for name in pair])
    check_nothing_else(file, model, found, pairs, observed.entering)
    check_same_equations(file, model, found, observed, layers)


@torch.no_grad()
def _fill(adapted: PeftModel, file: Official, found: Inspection) -> None:
    """Copy a checkpoint's trained weights into a new adapter."""
    model = adapted.base_model.model
    for name, adapters in zip(found.blocks, file.adapters, strict=True):
        layer = model.get_submodule(name)
        for key, tensor in adapters.items():
            part, _, kind = key.partition(".")
            _copy(getattr(getattr(layer, f"aim_{part}")[ADAPTER], kind), tensor)
    ((first, pre_norm),) = found.entries.items()
    _copy(model.get_submodule(pre_norm or first).aim_temporal_embedding[ADAPTER].weight, file.temporal_embedding)
    norm = model.get_submodule(found.final_norms[0]).aim_norm[ADAPTER]
    head = model.get_submodule(found.head).aim_head[ADAPTER]
    for kind in ("weight", "bias"):
        _copy(getattr(norm, kind), file.norm[kind])
        _copy(getattr(head, kind), file.head[kind])


def _copy(parameter: Tensor, tensor: Tensor) -> None:
    assert parameter.shape == tensor.shape
    parameter.copy_(tensor)
