"""AIM's computations on plain tensors: the bottleneck, and regrouping tokens from frames to time and back.

Letters used throughout: B clips, T frames per clip, N tokens per frame, D token width. A block receives clips as
images, ``(B*T, *N, D)``, where ``*N`` is one axis of tokens or two spatial axes (height, width). A few models split
images into G patch groups, ``(B*T*G, *N, D)``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true


def bottleneck(x: Tensor, down: nn.Module, up: nn.Module, channels: int = -1) -> Tensor:
    r"""Apply an adapter, ``up(gelu(down(x)))``, in the adapter's dtype (paper, figure 2a).

    Args:
        x: Tokens, in the backbone's dtype.
        down: Linear layer D -> r D.
        up: Linear layer r D -> D.
        channels: Axis of the channels, -1 or 1.

    Shape:
        ``(*, D) -> (*, D)``, in the dtype of ``x``.

    Example:
        >>> half = torch.ones(2, 4, dtype=torch.bfloat16)
        >>> bottleneck(half, nn.Linear(4, 1), nn.Linear(1, 4)).dtype
        torch.bfloat16
    """
    return widen(narrow(x.movedim(channels, -1), down), up).to(x.dtype).movedim(-1, channels)


def narrow(x: Tensor, down: nn.Module) -> Tensor:
    """Apply the first half of a bottleneck, ``down(x)``, in the adapter's dtype.

    Shape:
        ``(*, D) -> (*, r D)``
    """
    return on_rows(down, x.to(down.weight.dtype))


def widen(z: Tensor, up: nn.Module) -> Tensor:
    """Apply the second half of a bottleneck, ``up(gelu(z))``.

    Shape:
        ``(*, r D) -> (*, D)``
    """
    return on_rows(up, F.gelu(z))


def on_rows(linear: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer to a matrix: for other shapes, torch's kernel depends on whether gradients are required."""
    return linear(x.reshape(-1, x.shape[-1])).unflatten(0, x.shape[:-1])


def to_time(tokens: Tensor, frames: int, groups: int = 1) -> Tensor:
    """Regroup tokens into one sequence over time for each spatial position of a clip.

    Args:
        tokens: Tokens of B clips.
        frames: Frames T per clip.
        groups: Patch groups G per frame, each with N tokens.

    Shape:
        ``(B*T*G, *N, D) -> (B*G*N, T, D)``

    Example:
        >>> to_time(torch.zeros(6, 5, 8), frames=3).shape  # 2 clips, 3 frames, 5 tokens
        torch.Size([10, 3, 8])
    """
    count = tokens.shape[0] // (frames * groups)  # not -1, which could be anything for no clips
    clips = tokens.unflatten(0, (count, frames, groups)).flatten(2, -2)  # (B, T, G*N, D)
    return clips.transpose(1, 2).flatten(0, 1).contiguous()  # for one clip a view, which every projection would copy


def from_time(sequences: Tensor, like: Tensor, groups: int = 1) -> Tensor:
    """Undo :func:`to_time`.

    Args:
        sequences: One sequence over time per spatial position of a clip, of any width R.
        like: Tokens ``(B*T*G, *N, D)`` of the clips.
        groups: Patch groups G per frame.

    Shape:
        ``(B*G*N, T, R) -> (B*T*G, *N, R)``

    Example:
        >>> tokens = torch.randn(6, 5, 8)
        >>> torch.equal(from_time(to_time(tokens, frames=3), like=tokens), tokens)
        True
    """
    clips = like.shape[0] // (sequences.shape[1] * groups)
    positions = like.shape[1:-1].numel() * groups
    frames_first = sequences.unflatten(0, (clips, positions)).transpose(1, 2)
    return frames_first.reshape(*like.shape[:-1], sequences.shape[-1])


def add_temporal_embedding(tokens: Tensor, embedding: Tensor, frames: int, groups: int = 1) -> Tensor:
    """Add to every token the embedding of its frame.

    Args:
        tokens: Tokens of B clips.
        embedding: Temporal embedding for T' frames, interpolated linearly if T differs from T'.
        frames: Frames T per clip.
        groups: Patch groups G per frame.

    Shape:
        tokens ``(B*T*G, *N, D)``, embedding ``(1, T', D)`` -> ``(B*T*G, *N, D)``

    Example:
        >>> add_temporal_embedding(torch.zeros(2, 1, 1), torch.tensor([[[0.0], [2.0]]]), frames=2).flatten()
        tensor([0., 2.])
    """
    if not _are_surely_equal(embedding.shape[1], frames):
        embedding = F.interpolate(embedding.transpose(1, 2), size=frames, mode="linear").transpose(1, 2)
    axes = [1] * (tokens.ndim - 2)
    embedding = embedding.transpose(0, 1).expand(-1, groups, -1).flatten(0, 1)  # (T*G, D)
    width, clips = embedding.shape[-1], tokens.shape[0] // (frames * groups)
    embedding = embedding.expand(clips, -1, -1)  # (B, T*G, D)
    return tokens + embedding.reshape(tokens.shape[0], *axes, width).to(tokens.dtype)


def _are_surely_equal(one: int, other: int) -> bool:
    """Whether two lengths are equal, and if a length is symbolic (export), whether that is so for all its values.

    If it is not known, interpolating is right, too: it changes nothing where the lengths are equal.
    """
    equal = one == other
    return bool(equal) if isinstance(equal, Tensor) else statically_known_true(equal)  # a tensor in torch.jit.trace


def drop_path(branch: Tensor, rate: float, batch: int = 0) -> Tensor:
    """Drop a residual branch for randomly chosen images (stochastic depth, arXiv 1603.09382).

    Args:
        branch: Output of the branch, to be added to the tokens.
        rate: Probability of dropping an image's branch; the others are scaled by ``1 / (1 - rate)``.
        batch: Axis of the images.

    Shape:
        ``(B*T, *) -> (B*T, *)``

    Example:
        >>> drop_path(torch.ones(2, 3), rate=0.0).sum()
        tensor(6.)
    """
    if rate == 0:
        return branch
    kept = torch.rand(branch.shape[batch], *[1] * (branch.ndim - 1), device=branch.device) >= rate
    return branch * kept.transpose(0, batch).to(branch.dtype) / (1 - rate)


def same_in_all_frames(features: Tensor, rate: float, frames: int) -> Tensor:
    """Apply dropout to the same features in all frames of a clip, as if it were applied to the average over frames.

    Args:
        features: Features of B clips.
        rate: Probability of dropping a feature; the others are scaled by ``1 / (1 - rate)``.
        frames: Frames T per clip.

    Shape:
        ``(B*T, *, D) -> (B*T, *, D)``

    Example:
        >>> dropped = same_in_all_frames(torch.ones(6, 50), rate=0.5, frames=3)
        >>> torch.equal(dropped[0], dropped[2]), torch.equal(dropped[0], dropped[3])
        (True, False)
    """
    features = features.unflatten(0, (features.shape[0] // frames, frames))  # (B, T, *, D)
    return (features * F.dropout(torch.ones_like(features[:, :1]), rate)).flatten(0, 1)


def initialize(linear: nn.Linear) -> None:
    """Initialize a layer as the official code does: normal weights with standard deviation 0.02, zero bias."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
