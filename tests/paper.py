"""A reference implementation of AIM: the paper's equations in plain torch, independent of the package.

Weights are dicts of tensors. Letters: B clips, T frames, N tokens, D token width, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def layer_norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def adapter(x: Tensor, w: Weights, name: str) -> Tensor:
    """W_up GELU(W_down x)."""
    return linear(gelu(linear(x, w, f"{name}_down")), w, f"{name}_up")


def attention(x: Tensor, w: Weights, name: str, heads: int, bias: Tensor | float = 0.0) -> Tensor:
    """Softmax attention over the middle axis of tokens (batch, length, D)."""
    q, k, v = linear(x, w, f"{name}.qkv").chunk(3, dim=-1)
    outputs = []
    for h in range(heads):
        part = slice(h * x.shape[-1] // heads, (h + 1) * x.shape[-1] // heads)
        scores = q[..., part] @ k[..., part].transpose(-1, -2) / math.sqrt(x.shape[-1] // heads)
        scores = scores + (bias[:, h] if isinstance(bias, Tensor) else bias)
        outputs.append(torch.softmax(scores, dim=-1) @ v[..., part])
    return linear(torch.cat(outputs, dim=-1), w, f"{name}.proj")


def temporal_branch(x: Tensor, w: Weights, a: Weights, block: str, heads: int, eps: float) -> Tensor:
    """T_Adapter(attn_T(LN1(x))) for x (B, T, N, D), with T_in before the attention if it has weights."""
    B, T, N, D = x.shape
    h = layer_norm(x, w, f"{block}.norm1", eps)
    h = h.permute(0, 2, 1, 3).reshape(B * N, T, D)
    if f"{block}.temporal_in_up.weight" in a:
        h = h + adapter(h, a, f"{block}.temporal_in")
    y = adapter(attention(h, w, f"{block}.attn", heads), a, f"{block}.temporal")
    return y.reshape(B, N, T, D).permute(0, 2, 1, 3)


def has(a: Weights, block: str, branch: str) -> bool:
    return f"{block}.{branch}_up.weight" in a


def vit(clips: Tensor, w: Weights, a: Weights, *, depth: int, heads: int, scale: float, act, eps: float) -> Tensor:
    """Scores (B, classes) of an adapted ViT: that of CLIP if the weights include a norm_pre, else that of ImageNet."""
    B, T = clips.shape[:2]
    patch = w["patch_embed.proj.weight"].shape[-1]
    pixels = clips.flatten(0, 1).unfold(2, patch, patch).unfold(3, patch, patch)  # (B*T, C, h, w, patch, patch)
    pixels = pixels.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = pixels @ w["patch_embed.proj.weight"].flatten(1).T
    if "patch_embed.proj.bias" in w:
        x = x + w["patch_embed.proj.bias"]
    x = torch.cat([w["cls_token"].expand(len(x), 1, -1), x], dim=1) + w["pos_embed"]
    x = x.unflatten(0, (B, T))  # (B, T, N, D)
    if "embedding" in a:
        x = x + a["embedding"][:, :, None]
    if "norm_pre.weight" in w:
        x = layer_norm(x, w, "norm_pre", eps)
    for i in range(depth):
        block = f"blocks.{i}"
        if has(a, block, "temporal"):
            x = x + temporal_branch(x, w, a, block, heads, eps)
        s = attention(layer_norm(x, w, f"{block}.norm1", eps).flatten(0, 1), w, f"{block}.attn", heads)
        s = s.unflatten(0, (B, T))
        x = x + s + (adapter(s, a, f"{block}.spatial") if has(a, block, "spatial") else 0)
        h = layer_norm(x, w, f"{block}.norm2", eps)
        m = linear(act(linear(h, w, f"{block}.mlp.fc1")), w, f"{block}.mlp.fc2")
        x = x + m + (scale * adapter(h, a, f"{block}.joint") if has(a, block, "joint") else 0)
    readout = layer_norm(x, w, "norm", eps)[:, :, 0].mean(1)  # the class token, averaged over frames
    return linear(readout, w, "head")


def swin(clips: Tensor, w: Weights, a: Weights, *, depths: tuple, heads: tuple, window: int, scale: float) -> Tensor:
    """Scores of an adapted Swin: temporal attention at each spatial position, without the bias of windows."""
    eps = 1e-5
    B, T = clips.shape[:2]
    patch = w["patch_embed.proj.weight"].shape[-1]
    pixels = clips.flatten(0, 1).unfold(2, patch, patch).unfold(3, patch, patch)
    pixels = pixels.permute(0, 2, 3, 1, 4, 5).flatten(3)  # (B*T, h, w, C*patch*patch)
    x = pixels @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    x = layer_norm(x, w, "patch_embed.norm", eps)
    if "embedding" in a:
        x = x + a["embedding"].expand(B, -1, -1).flatten(0, 1)[:, None, None]
    for stage, depth in enumerate(depths):
        if stage:
            x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)
            x = layer_norm(x, w, f"layers.{stage}.downsample.norm", eps)
            x = x @ w[f"layers.{stage}.downsample.reduction.weight"].T
        side, D = x.shape[1], x.shape[-1]
        size = min(window, side)
        for i in range(depth):
            block = f"layers.{stage}.blocks.{i}"
            shift = size // 2 if i % 2 and side > window else 0
            if has(a, block, "temporal"):
                tokens = x.reshape(B, T, side * side, D)
                x = x + temporal_branch(tokens, w, a, block, heads[stage], eps).reshape(x.shape)
            s = window_attention(
                layer_norm(x, w, f"{block}.norm1", eps), w, f"{block}.attn", heads[stage], size, shift
            )
            x = x + s + (adapter(s, a, f"{block}.spatial") if has(a, block, "spatial") else 0)
            h = layer_norm(x, w, f"{block}.norm2", eps)
            m = linear(gelu(linear(h, w, f"{block}.mlp.fc1")), w, f"{block}.mlp.fc2")
            x = x + m + (scale * adapter(h, a, f"{block}.joint") if has(a, block, "joint") else 0)
    x = layer_norm(x, w, "norm", eps).mean((1, 2)).unflatten(0, (B, T)).mean(1)
    return linear(x, w, "head.fc")


def window_attention(x: Tensor, w: Weights, name: str, heads: int, size: int, shift: int) -> Tensor:
    """Attention of every token to the tokens of its shifted window, one window at a time."""
    side = x.shape[1]
    region = torch.zeros(side, side)  # tokens that the roll moves next to each other from opposite borders are masked
    for n, rows in enumerate((slice(0, side - size), slice(side - size, side - shift), slice(side - shift, None))):
        for m, columns in enumerate(
            (slice(0, side - size), slice(side - size, side - shift), slice(side - shift, None))
        ):
            region[rows, columns] = 3 * n + m
    rolled = x.roll((-shift, -shift), dims=(1, 2))
    bias = relative_bias(w[f"{name}.relative_position_bias_table"], size)  # (H, size², size²)
    out = torch.empty_like(x)
    for top in range(0, side, size):
        for left in range(0, side, size):
            here = (slice(None), slice(top, top + size), slice(left, left + size))
            label = region[here[1:]].flatten()
            apart = -100.0 * (label[:, None] != label[None, :]) * (shift > 0)
            y = attention(rolled[here].flatten(1, 2), w, name, heads, bias=(bias + apart)[None].to(x.dtype))
            out[here] = y.unflatten(1, (size, size))
    return out.roll((shift, shift), dims=(1, 2))


def relative_bias(table: Tensor, size: int) -> Tensor:
    bias = table.new_empty(table.shape[1], size * size, size * size)
    for i in range(size * size):
        for j in range(size * size):
            dy, dx = i // size - j // size + size - 1, i % size - j % size + size - 1
            bias[:, i, j] = table[dy * (2 * size - 1) + dx]
    return bias
