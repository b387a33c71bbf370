"""The temporal embedding, and AIMEmbedding, which adds it where a norm stands before the first block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.backbone import Anatomy
from peft_aim.clips import Frames
from peft_aim.config import AIMConfig
from peft_aim.layers.adapter import add_temporal_embedding
from peft_aim.layers.base import AIMTunerLayer


class AIMEmbedding(AIMTunerLayer):
    """The norm between position embedding and first block (CLIP), with temporal embeddings that are added before it.

    They are no part of the first block: what shards a model block by block (FSDP) has a block's weights at hand only
    while that runs.

    Args:
        norm: The norm.
        anatomy: Of the first block, which gets the norm's tokens.
        frames: Tells how many frames the clips have that tokens belong to.
    """

    adapter_layer_names = ("aim_temporal_embedding",)

    def __init__(self, norm: nn.Module, anatomy: Anatomy, frames: Frames) -> None:
        super().__init__(norm)
        self.anatomy = anatomy
        self.frames = frames

    def new_weights(self, config: AIMConfig, branches: list[str]) -> dict[str, nn.Parameter]:
        """Make a temporal embedding."""
        return {"aim_temporal_embedding": new_embedding(config, self.anatomy.width)}

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Normalize tokens ``(B*T, *N, D)`` to which the embedding of their frame's index was added."""
        adapter = self.current
        if adapter is not None:
            frames = self.frames.of(tokens, self.anatomy.groups)
            tokens = embed(tokens, self.aim_temporal_embedding[adapter], frames, self.anatomy)
        return self.base_layer(tokens, *args, **kwargs)


def new_embedding(config: AIMConfig, width: int) -> nn.Parameter:
    """Return a fresh temporal embedding (1, T, D)."""
    draw = torch.zeros if config.init_weights else torch.randn
    return nn.Parameter(draw(1, config.num_frames, width))


def embed(tokens: Tensor, embedding: Tensor, frames: int, anatomy: Anatomy) -> Tensor:
    """Add a temporal embedding to tokens whose channels are where a block has them.

    Args:
        tokens: Tokens ``(B*T, *N, D)`` or ``(B*T, D, *N)``.
        embedding: The embedding (1, T', D).
        frames: Frames T per clip.
        anatomy: The parts of the block.
    """
    embedded = add_temporal_embedding(tokens.movedim(anatomy.channels, -1), embedding, frames, anatomy.groups)
    return embedded.movedim(-1, anatomy.channels)
