"""Attentive pooling: one learned query attends to all tokens of all frames of a frozen backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peft_aim.layers import initialize


class AttentivePooling(nn.Module):
    r"""A frozen backbone with an attentive probe.

    .. math::
        \mathrm{scores} = W\,\mathrm{norm}(\mathrm{attn}(q, X, X))

    X are the tokens of all frames of a clip. They carry no frame index, so the order of frames has no effect.

    Args:
        backbone: A vision transformer of timm, frozen by this class.
        classes: Number of classes K.

    Shape:
        Clips ``(B, T, C, H, W) -> (B, K)``
    """

    def __init__(self, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        width, heads = backbone.num_features, backbone.blocks[-1].attn.num_heads
        self.backbone = backbone.requires_grad_(False)
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        initialize(self.head)

    def forward(self, clips: Tensor) -> Tensor:
        """Return the scores of clips."""
        with torch.no_grad():
            tokens = self.backbone.forward_features(clips.flatten(0, 1))  # (B*T, N, D)
        tokens = tokens.unflatten(0, clips.shape[:2]).flatten(1, 2)
        pooled, _ = self.attention(self.query.expand(len(clips), -1, -1), tokens, tokens, need_weights=False)
        return self.head(self.norm(pooled[:, 0]))
