"""How much frozen attention along time blurs: what its output still tells of single frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.layers import to_time


@torch.no_grad()
def blur(backbone: nn.Module, clips: Tensor) -> list[dict[str, float]]:
    """Measure the attention of each block of a vision transformer of timm, run over the frames of clips.

    Args:
        backbone: The frozen backbone.
        clips: Clips ``(B, T, 3, H, W)``.

    Returns:
        For each block, the entropy of the attention weights, as a fraction of that of uniform ones, and the share of
        the variance of the tokens that is between the frames of a spatial position, before and after attention.
    """
    frames, found = clips.shape[1], []
    inputs: dict[nn.Module, Tensor] = {}
    hooks = [
        block.attn.register_forward_pre_hook(lambda module, args: inputs.update({module: args[0]}))
        for block in backbone.blocks
    ]
    backbone.eval()(clips.flatten(0, 1))
    for hook in hooks:
        hook.remove()
    for attention, tokens in inputs.items():
        sequences = to_time(tokens, frames)  # (B*N, T, D)
        query, key, _ = attention.qkv(sequences).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
        scores = torch.einsum("ithd,ishd->ihts", query, key) * attention.scale
        entropy = torch.distributions.Categorical(logits=scores).entropy().mean().item() / math.log(frames)
        shares = {"input": between(sequences), "output": between(attention(sequences))}
        found.append({"entropy": entropy, **shares})
    return found


def between(sequences: Tensor) -> float:
    """Return the share of the variance that is between the frames of a spatial position.

    Example:
        >>> between(torch.tensor([[[1.0], [3.0]], [[1.0], [3.0]]]))
        1.0
    """
    whole = (sequences - sequences.mean((0, 1))).square().sum(-1).mean()
    return ((sequences - sequences.mean(1, keepdim=True)).square().sum(-1).mean() / whole).item()


def in_words(found: Sequence[dict[str, Any]]) -> str:
    """Return the ranges over the blocks."""
    entropy, before, after = ([block[key] for block in found] for key in ("entropy", "input", "output"))
    return (
        f"Frozen attention along time on *signs*: over the blocks, its entropy is {min(entropy):.0%} to "
        f"{max(entropy):.0%} of the largest possible one, and the share of variance between frames falls from "
        f"{min(before):.0%} to {max(before):.0%} in its input to {min(after):.1%} to {max(after):.1%} in its output."
    )
