"""The temporal embedding, and AIMEmbedding, which adds it in models with a norm before the first block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.clips import Frames
from peft_aim.config import AIMConfig
from peft_aim.layers.adapter import add_temporal_embedding
from peft_aim.layers.base import AIMTunerLayer
from peft_aim.tracing import Layout


class AIMEmbedding(AIMTunerLayer):
    """The norm between position embedding and first block (CLIP), with temporal embeddings added to its input.

    The embeddings are not stored in the first block, since FSDP, which shards a model block by block, has a block's
    weights available only while the block runs.

    Args:
        norm: The norm.
        width: Token width D.
        tokens: Layout of the tokens that the norm is called on.
        frames: Maps tokens to the number of frames of their clips.
    """

    adapter_layer_names = ("aim_temporal_embedding",)

    def __init__(self, norm: nn.Module, width: int, tokens: Layout, frames: Frames) -> None:
        super().__init__(norm)
        self.width, self.tokens = width, tokens
        self.frames = frames

    def new_weights(self, config: AIMConfig, branches: list[str]) -> dict[str, nn.Parameter]:
        """Create a temporal embedding."""
        return {"aim_temporal_embedding": new_embedding(config, self.width)}

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add the temporal embedding to tokens ``(B*T, *N, D)`` and normalize them."""
        adapter = self.current
        if adapter is not None:
            frames = self.frames.of(self.tokens.batch_first(tokens), self.tokens.groups)
            tokens = embed(tokens, self.aim_temporal_embedding[adapter], frames, self.tokens)
        return self.base_layer(tokens, *args, **kwargs)


def new_embedding(config: AIMConfig, width: int) -> nn.Parameter:
    """Return a new temporal embedding (1, T, D)."""
    draw = torch.zeros if config.init_weights else torch.randn
    return nn.Parameter(draw(1, config.num_frames, width))


def embed(tokens: Tensor, embedding: Tensor, frames: int, layout: Layout) -> Tensor:
    """Add a temporal embedding to tokens in any layout.

    Args:
        tokens: Tokens of B clips.
        embedding: The embedding (1, T', D).
        frames: Frames T per clip.
        layout: Their layout.
    """
    return layout.restored(add_temporal_embedding(layout.batch_first(tokens), embedding, frames, layout.groups))
