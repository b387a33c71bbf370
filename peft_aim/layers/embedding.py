"""The temporal embedding, and AIMEmbedding, which adds it in models with a norm before the first block."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.clips import Frames, Part, Span, times
from peft_aim.config import AIMConfig
from peft_aim.layers.adapter import add_temporal_embedding
from peft_aim.layers.base import AIMTunerLayer
from peft_aim.tracing import Layout

EMBEDDING = r"\baim_\w*embedding"  # a regular expression for the names of containers of temporal embeddings


class TemporalEmbedding(nn.Module):
    """A learned embedding of each frame, added to all its tokens.

    A module, since what shards or offloads a model has weights available only while the module that holds them is
    called. Files name it without ``weight``, see :func:`saved_name`.

    Args:
        initial: The initial embedding, of T' frames.
        causal: Whether frames after the last have the embedding of the last, rather than that of all frames being
            interpolated to the length of the clip. In streams, it is always so.

    Shape:
        embedding ``(1, T', D)``; tokens ``(B*T*G, *N, D) -> (B*T*G, *N, D)``

    Example:
        >>> TemporalEmbedding(torch.tensor([[[0.0], [2.0]]]))(torch.zeros(2, 1, 1), frames=2).flatten().tolist()
        [0.0, 2.0]
    """

    def __init__(self, initial: Tensor, causal: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(initial)
        self.causal = causal

    def forward(self, tokens: Tensor, frames: int, groups: int = 1, past: Part | None = None) -> Tensor:
        """Add the embedding to tokens of clips of T frames, in G patch groups each."""
        embedding = self.weight
        if self.causal or past is not None:
            embedding = embedding[:, times(frames, past, tokens.device).clamp(max=embedding.shape[1] - 1)]
        return add_temporal_embedding(tokens, embedding, frames, groups)


def saved_name(name: str) -> str:
    """Return the name in files of an adapter's weight, which for embeddings is that of the container.

    Args:
        name: Its name in the model, without the adapter's name.

    Example:
        >>> saved_name("blocks.0.aim_temporal_embedding.weight"), saved_name("blocks.0.aim_joint_up.weight")
        ('blocks.0.aim_temporal_embedding', 'blocks.0.aim_joint_up.weight')
    """
    return re.sub(rf"({EMBEDDING})\.weight$", r"\1", name)


class AIMEmbedding(AIMTunerLayer):
    """The norm between position embedding and first block (CLIP), with temporal embeddings added to its input.

    The embeddings are not stored in the first block, since FSDP, which shards a model block by block, has a block's
    weights available only while the block runs.

    Args:
        norm: The norm.
        width: Token width D.
        tokens: Layout of the tokens that the norm is called on.
        frames: Maps tokens to the frames of their clips.
    """

    adapter_layer_names = ("aim_temporal_embedding",)

    def __init__(self, norm: nn.Module, width: int, tokens: Layout, frames: Frames) -> None:
        super().__init__(norm)
        self.width, self.tokens = width, tokens
        self.frames = frames

    def new_weights(self, config: AIMConfig, branches: list[str]) -> dict[str, nn.Module]:
        """Create a temporal embedding."""
        return {"aim_temporal_embedding": new_embedding(config, self.width)}

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add the temporal embedding to tokens ``(B*T, *N, D)`` and normalize them."""
        adapter = self.current
        if adapter is not None:
            span = self.frames.of(self.tokens.batch_first(tokens), self.tokens.groups)
            tokens = embed(tokens, self.aim_temporal_embedding[adapter], span, self.tokens)
        return self.base_layer(tokens, *args, **kwargs)


def new_embedding(config: AIMConfig, width: int) -> TemporalEmbedding:
    """Return a new temporal embedding (1, T, D)."""
    draw = torch.zeros if config.init_weights else torch.randn
    return TemporalEmbedding(draw(1, config.num_frames, width), config.causal)


def embed(tokens: Tensor, embedding: nn.Module, span: Span, layout: Layout) -> Tensor:
    """Add a temporal embedding to tokens in any layout.

    Args:
        tokens: Tokens of B clips.
        embedding: The :class:`TemporalEmbedding`.
        span: Frames T per clip, and what a stream remembers of those before.
        layout: Their layout.
    """
    return layout.restored(embedding(layout.batch_first(tokens), span.frames, layout.groups, span.past))
