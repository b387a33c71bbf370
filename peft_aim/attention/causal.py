"""Causal temporal attention: a frame attends to itself and to the frames before it, a band of limited width.

An attention is run by its projections alone, so that which frames it attends to can be limited, and keys and values
of earlier frames kept. Where another kind runs it over whole clips, its projections have to reproduce that kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_aim.attention.guesses import guesses
from peft_aim.attention.kinds import Kind, in_words
from peft_aim.attention.product import find_output
from peft_aim.attention.projected import Projected
from peft_aim.attention.recognize import LENGTHS, LONG, random_twin
from peft_aim.attention.without_space import same
from peft_aim.tracing import first_tensor


@dataclass(frozen=True)
class OfMultihead:
    """softmax attention with the projections of torch's own attention

    Its dropout is left out. See :class:`Projected` for the methods.
    """  # noqa: D415

    def __call__(self, attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
        """Run over time, ``(B*N, T, D) -> (B*N, T, D)``."""
        return self.mix(attention, *self.project(attention, x))

    def project(self, attention: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value of tokens ``(B*N, T, D)``, each ``(B*N, heads, T, D / heads)``."""
        if attention.in_proj_weight.is_meta and not x.is_meta:
            raise ValueError(
                "The weights of an nn.MultiheadAttention are offloaded, and only its own forward fetches them, which "
                "causal attention does not call. Keep the model on one device, or pass causal=False."
            )
        features = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = (
            part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in features.chunk(3, dim=-1)
        )
        return query, key, value

    def mix(
        self, attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Mix the values by the scores of queries and keys, and project the result, to ``(B*N, T, D)``."""
        mixed = F.scaled_dot_product_attention(query, key, value, mask)
        return attention.out_proj(mixed.transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class Causal:
    """Causal temporal attention of a block.

    Args:
        kind: How the attention's projections are used.
        output: Name, inside the attention, of the linear layer at its end, None if there is none.
    """

    kind: Projected | OfMultihead
    output: str | None

    def __call__(self, attention: nn.Module, x: Tensor, width: int) -> Tensor:
        """Run over time, ``(B*N, T, D) -> (B*N, T, D)``; each frame attends to ``width`` frames at most."""
        return self.kind.mix(attention, *self.kind.project(attention, x), band(x.shape[1], width, x.device))


def band(frames: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return which frames each frame attends to: itself and the ones before it, ``width`` in all.

    Shape:
        ``(T, T)``, True where the frame of the row attends to that of the column

    Example:
        >>> band(4, width=2).int().tolist()
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    time = torch.arange(frames, device=device)
    age = time[:, None] - time
    return (age >= 0) & (age < width)


@torch.no_grad()
def find_causal(kind: Kind, attention: nn.Module, width: int) -> Causal:
    """Find how an attention is run over the frames of the past alone.

    Args:
        kind: How it is run over whole clips.
        attention: The attention of a block.
        width: Token width D.

    Raises:
        ValueError: If its projections do not reproduce that, with what was observed.

    Example:
        >>> from timm.layers import Attention
        >>> from peft_aim.attention.kinds import plain
        >>> find_causal(plain, Attention(8, 2), 8).kind.inner
        ('qkv',)
    """
    twin, observed, tried = random_twin(attention), "", 0
    is_torchs = isinstance(attention, nn.MultiheadAttention)
    for guess in [kind] if isinstance(kind, Projected) else [OfMultihead()] if is_torchs else guesses(twin):
        tried += 1
        if guess is kind or _reproduces(guess, kind, twin, width):
            if _takes_frames_alone(guess, twin, width):
                return Causal(guess, find_output(guess, twin, width))
            observed = "its norms or projections mix frames as well"
    if not tried:
        observed = "the names of its parts do not show its projections to query, key and value, or its number of heads"
    observed = observed or f"{tried} ways to use its projections do not reproduce that"
    raise ValueError(
        f"{type(attention).__name__} cannot be limited to earlier frames: over time, it is run by {in_words(kind)}, "
        f"and {observed}"
    )


def _takes_frames_alone(guess: Projected | OfMultihead, attention: nn.Module, width: int) -> bool:
    """Whether norms and projections act on each frame alone, unlike a norm over all tokens (GroupNorm)."""
    x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    causal = Causal(guess, None)
    return same(causal(attention, x, 3)[:, :1], causal(attention, x[:, :1], 3))


def _reproduces(guess: Projected | OfMultihead, kind: Kind, attention: nn.Module, width: int) -> bool:
    """Whether projections give the same as a kind, for sequences of several lengths."""
    generator = torch.Generator().manual_seed(1)
    for length in (1, *LENGTHS, LONG):
        x = torch.randn(2, length, width, generator=generator, dtype=torch.float64)
        expected = first_tensor(kind(attention, x))
        try:
            found = guess(attention, x)
        except Exception:  # projections of a foreign attention may have other widths
            return False
        if found.shape != expected.shape or not same(found, expected):
            return False
    return True
