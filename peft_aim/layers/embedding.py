"""The temporal embedding, and AIMEmbedding, which adds it in models with a norm before the first block."""

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
    """The norm between position embedding and first block (CLIP), with temporal embeddings added to its input.

    The embeddings are not stored in the first block, since FSDP, which shards a model block by block, has a block's
    weights available only while the block runs.

    Args:
        norm: The norm.
        anatomy: The parts of the first block, which receives the norm's output.
        frames: Maps tokens to the number of frames of their clips.
    """

    adapter_layer_names = ("aim_temporal_embedding",)

    def __init__(self, norm: nn.Module, anatomy: Anatomy, frames: Frames) -> None:
        super().__init__(norm)
        self.anatomy = anatomy
        self.frames = frames

    def new_weights(self, config: AIMConfig, branches: list[str]) -> dict[str, nn.Parameter]:
        """Create a temporal embedding."""
        return {"aim_temporal_embedding": new_embedding(config, self.anatomy.width)}

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add the temporal embedding to tokens ``(B*T, *N, D)`` and normalize them."""
        adapter = self.current
        if adapter is not None:
            frames = self.frames.of(tokens, self.anatomy.groups)
            tokens = embed(tokens, self.aim_temporal_embedding[adapter], frames, self.anatomy)
        return self.base_layer(tokens, *args, **kwargs)


def new_embedding(config: AIMConfig, width: int) -> nn.Parameter:
    """Return a new temporal embedding (1, T, D)."""
    draw = torch.zeros if config.init_weights else torch.randn
    return nn.Parameter(draw(1, config.num_frames, width))


def embed(tokens: Tensor, embedding: Tensor, frames: int, anatomy: Anatomy) -> Tensor:
    """Add a temporal embedding to tokens in the layout of a block.

    Args:
        tokens: Tokens ``(B*T, *N, D)`` or ``(B*T, D, *N)``.
        embedding: The embedding (1, T', D).
        frames: Frames T per clip.
        anatomy: The parts of the block.
    """
    embedded = add_temporal_embedding(tokens.movedim(anatomy.channels, -1), embedding, frames, anatomy.groups)
    return embedded.movedim(-1, anatomy.channels)
