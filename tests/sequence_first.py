"""Image models whose blocks take tokens with the sequence first, (N, B, D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """A block of OpenAI's package ``clip``, which calls torch's attention by a method of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), QuickGELU(), nn.Linear(2 * width, width))

    def attention(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False, attn_mask=None)[0]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class ClipImageTower(nn.Module):
    """The image tower of ``clip``: the norm before the first block takes (B, N, D), the blocks (N, B, D).

    Args:
        size: Height and width of an image.
        patch: Those of a patch.
        width: Token width D.
        block: Builds a block.
        class_token: Whether there is one; without it, the features are the average over all tokens.
    """

    def __init__(
        self, size: int, patch: int, width: int = 32, block: type | None = None, class_token: bool = True
    ) -> None:
        super().__init__()
        self.image_size = size
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width)) if class_token else None
        self.positional_embedding = nn.Parameter(torch.randn((size // patch) ** 2 + class_token, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.resblocks = nn.Sequential(*((block or ResidualAttentionBlock)(width, 2) for _ in range(2)))
        self.proj = nn.Parameter(torch.randn(width, 24))

    def tokens(self, images: Tensor) -> Tensor:
        """Return what the blocks return, (N, B, D)."""
        x = self.conv1(images).flatten(2).mT
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        return self.resblocks(self.ln_pre(x + self.positional_embedding).transpose(0, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images).transpose(0, 1)
        x = x.mean(1) if self.class_embedding is None else x[:, 0]
        return self.ln_post(x) @ self.proj


class OwnAttention(nn.Module):
    """Attention written by hand for (N, B, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)) for t in self.to_qkv(x).chunk(3, dim=2))  # (N, B, heads, D)
        weights = torch.einsum("ibhd,jbhd->bhij", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
        return self.out(torch.einsum("bhij,jbhd->ibhd", weights, v).flatten(2))


class OwnBlock(nn.Module):
    """A pre-norm block with :class:`OwnAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = OwnAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PostNormBlock(OwnBlock):
    """The same, with the norms at the end of the branches."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp(x))


class BatchFirstInside(OwnBlock):
    """A block that transposes its tokens for an attention that takes (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x).transpose(0, 1)
        x = x + self.attn(h, h, h, need_weights=False)[0].transpose(0, 1)
        return x + self.mlp(self.norm2(x))
