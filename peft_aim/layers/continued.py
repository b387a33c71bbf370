"""The parts of the temporal branch that pass information between frames, continued from frame to frame of a stream.

They compute, for each frame, what they compute for it in a whole clip, from what they remember of earlier frames.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from peft_aim.attention import Causal, Weights
from peft_aim.clips import Cell, Part, kept
from peft_aim.layers.order import channels_first, channels_last


def attend_to_past(causal: Causal, attention: nn.Module, x: Tensor, past: Part) -> Tensor:
    """Run causal temporal attention on the next frames of a stream, ``(B*N, T, D) -> (B*N, T, D)``.

    Keys and values of the last ``past.width`` frames are kept in a ring: that of frame t has the slot t % width.

    Args:
        causal: How the attention is run.
        attention: The attention.
        x: Tokens of the next frames.
        past: What the block remembers of the frames before.

    Raises:
        ValueError: If keys and values have another dtype than those before.
    """
    query, key, value = causal.kind.project(attention, x)
    rings = [kept(past.cell, name, _ring(new, past.width)) for name, new in (("key", key), ("value", value))]
    if rings[0].dtype != key.dtype:
        raise ValueError(
            f"The model now computes in {key.dtype}, but in {rings[0].dtype} when the stream began. Use autocast for "
            "all frames of a stream or for none, or call reset()."
        )
    slots, mixed = torch.arange(past.width, device=x.device), []
    for i in range(x.shape[1]):
        time = past.time + i
        slot, now = (time % past.width).view(1), slice(i, i + 1)
        for ring, new in zip(rings, (key, value), strict=True):
            ring.index_copy_(2, slot, new[:, :, now])
        written = (slots <= time).unsqueeze(0)  # (1, width)
        mixed.append(causal.kind.mix(attention, query[:, :, now], *rings, written))
    return torch.cat(mixed, dim=1)


def _ring(like: Tensor, width: int) -> Callable[[], Tensor]:
    return lambda: like.new_zeros(*like.shape[:2], width, like.shape[-1])


def kept_product(cell: Cell, product: Callable[[], tuple[Tensor, Tensor]]) -> Weights:
    """Return the product of attention's last layer and the adapter's first, computed in a stream's first call."""
    if "weight" not in cell:
        cell["weight"], cell["bias"] = product()
    return cell["weight"], cell["bias"]


def convolve_past(z: Tensor, convolution: nn.Module, frames: int, groups: int, cell: Cell) -> Tensor:
    """Apply :func:`peft_aim.layers.order.convolve` to the next frames of a stream.

    Of a convolution over earlier and later frames, the later ones are zero, as at the end of a clip.

    Args:
        z: Bottleneck activations of the next frames.
        convolution: The convolution over (time, 1).
        frames: Their number T.
        groups: Patch groups G per frame.
        cell: What the block remembers of the frames before.

    Shape:
        ``(B*T*G, *N, R) -> (B*T*G, *N, R)``
    """
    clips, padding = channels_first(z, frames, groups), convolution.padding[0]
    before = padding or convolution.kernel_size[0] - 1
    ring = kept(cell, "frames", lambda: clips.new_zeros(*clips.shape[:2], before, clips.shape[-1]))
    seen = torch.cat([ring, clips], dim=2)  # (B, R, before + T, G*N)
    ring.copy_(seen[:, :, frames:])
    if padding == 0:  # causal
        return channels_last(convolution(seen), z)
    each = [convolution(seen[:, :, i : i + before + 1])[:, :, before : before + 1] for i in range(frames)]
    return channels_last(torch.cat(each, dim=2), z)
