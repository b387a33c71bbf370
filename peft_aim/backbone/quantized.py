"""Checks quantized layers: their widths must be known, and in training gradients must pass through them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from peft_aim.backbone.resemblance import within
from peft_aim.tracing import Call, computing_weight, is_packed, unknown_storage


def check_known_storage(calls: Iterable[Call]) -> None:
    """Check that no layer stores its weights in a way of which not even their widths are known.

    Args:
        calls: The traced calls of a model.

    Raises:
        ValueError: If one does, with how its weights are stored.
    """
    for call in calls:
        handles = (call.given, call.returned)
        maps_features = not call.children and all(h is not None and h.dtype.is_floating_point for h in handles)
        stored = unknown_storage(call.module) if maps_features else None
        if stored is not None:
            raise ValueError(
                f"{call.name}, a {type(call.module).__name__}, stores its weights in a way that AIM does not know: "
                f"{stored}. How many features it takes and returns cannot be told from that. Give it the attributes "
                "in_features and out_features, as layers of bitsandbytes, torchao, optimum-quanto and HQQ have them, "
                "or quantize the model after adapting it."
            )


def check_gradients_pass(model: nn.Module, blocks: Iterable[str]) -> None:
    """Check that gradients pass through the quantized layers of blocks, by running each on one token.

    Args:
        model: The model.
        blocks: Names of its blocks.

    Raises:
        ValueError: If they do not, with the layer: adapters before it would learn from wrong gradients.
    """
    like = computing_weight(model)
    for name, layer in model.named_modules():
        if not (within(name, blocks) and is_packed(layer)):
            continue
        token = torch.zeros(1, layer.in_features, dtype=like.dtype, device=like.device, requires_grad=True)
        try:
            with torch.enable_grad():
                passes = layer(token).requires_grad
        except Exception:  # in shards, it cannot be called alone
            continue
        if not passes:
            stored = type(getattr(layer, "weight", None)).__name__
            raise ValueError(
                f"Gradients do not pass through {name.replace('base_layer.', '')}, a {type(layer).__name__} with a "
                f"{stored} as weight, so adapters before it would learn from wrong gradients. It quantizes its "
                "inputs, too: to train, quantize the weights only (Int8WeightOnlyConfig in torchao). For inference, "
                "load a trained adapter with PeftModel.from_pretrained, or give inference_mode=True."
            )
