"""Temporal attention and convolution computed by hand, from the weights of a block."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from peft_aim.layers import AIMLayer

# Attention between channels: same parts as softmax attention between tokens, other computation.
BETWEEN_CHANNELS = ("XCA", "ChannelAttention", "ChannelAttentionV2", "CrossCovarianceAttn")


def attention(own: nn.Module, x: Tensor) -> Tensor | None:
    """Compute softmax attention of ``(M, T, D)`` from weights with the usual names, or return None without them."""
    heads, qkv = getattr(own, "num_heads", None), getattr(own, "qkv", None)
    parts = {name for name, module in own.named_children() if any(True for _ in module.parameters())}
    if isinstance(own, nn.MultiheadAttention):
        features, out = x @ own.in_proj_weight.mT + own.in_proj_bias, own.out_proj
    elif parts == {"qkv", "proj"} and isinstance(qkv, nn.Linear) and qkv.out_features == 3 * x.shape[-1]:
        plain = heads and not getattr(own, "head_first", False) and not hasattr(own, "q_bias")
        if not plain or type(own).__name__ in BETWEEN_CHANNELS:
            return None
        features, out = qkv(x), own.proj
    else:
        return None
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in features.chunk(3, dim=-1))
    weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
    return out((weights @ v).transpose(1, 2).flatten(2))


def convolution(layer: AIMLayer, tokens: Tensor, frames: int) -> Tensor:
    """Compute ST-Adapter's branch of a block from its weights."""
    down, conv, up = (getattr(layer, f"aim_temporal_{name}")["default"] for name in ("down", "conv", "up"))
    layout = layer.anatomy.tokens
    z = down(layout.batch_first(tokens)).unflatten(0, (-1, frames, layout.groups))
    padded = torch.nn.functional.pad(z.movedim(1, -1), (1, 1)).movedim(-1, 1)
    mixed = sum(conv.weight[:, 0, k, 0] * padded[:, k : k + frames] for k in range(3)) + conv.bias
    return layout.restored(up(mixed.flatten(0, 2)))
