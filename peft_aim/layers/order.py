"""What makes the order of frames visible inside a bottleneck: a convolution over time, and an embedding.

Frozen attention along time is nearly uniform, so that its output hardly differs from frame to frame, and blind to
the order of frames. In the adapter after it, both parts act before the GELU.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def new_convolution(width: int, kernel: int, bias: bool = True, causal: bool = False) -> nn.Conv2d:
    """Return a depthwise convolution over time for a bottleneck, with random weights.

    It need not start at zero if a layer that follows it does. From zero, it would learn slowly: its weights are of
    order 1, and an optimizer step changes them by no more than the learning rate.

    Args:
        width: Width R of the bottleneck.
        kernel: Number of frames that it covers, an odd number.
        bias: Whether it has a bias.
        causal: Whether these are a frame and those before it, which have to be given, rather than its neighbors on
            both sides.
    """
    padding = 0 if causal else kernel // 2
    convolution = nn.Conv2d(width, width, (kernel, 1), padding=(padding, 0), groups=width, bias=bias)
    nn.init.normal_(convolution.weight, std=kernel**-0.5)
    return convolution


def convolve(z: Tensor, convolution: nn.Module, frames: int, groups: int = 1) -> Tensor:
    """Apply a convolution over the frames of a clip, separately for each spatial position.

    Args:
        z: Bottleneck activations of B clips.
        convolution: Convolution over (time, 1), see :func:`new_convolution`.
        frames: Frames T per clip. Beyond the ends of a clip, the convolution sees zeros.
        groups: Patch groups G per frame.

    Shape:
        ``(B*T*G, *N, R) -> (B*T*G, *N, R)``

    Example:
        >>> convolution = new_convolution(1, kernel=3, bias=False)
        >>> nn.init.ones_(convolution.weight).shape
        torch.Size([1, 1, 3, 1])
        >>> convolve(torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1), convolution, frames=3).flatten().tolist()
        [3.0, 7.0, 6.0]
    """
    clips = channels_first(z, frames, groups)
    if convolution.padding[0] == 0:  # causal
        clips = F.pad(clips, (0, 0, convolution.kernel_size[0] - 1, 0))
    return channels_last(convolution(clips), z)


def channels_first(z: Tensor, frames: int, groups: int) -> Tensor:
    """Regroup bottleneck activations ``(B*T*G, *N, R)`` for a convolution, ``(B, R, T, G*N)``."""
    clips = z.unflatten(0, (z.shape[0] // (frames * groups), frames, groups)).flatten(2, -2)  # (B, T, G*N, R)
    return clips.permute(0, 3, 1, 2)  # a view that is channels last in memory


def channels_last(clips: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`channels_first`."""
    return clips.permute(0, 2, 3, 1).reshape(like.shape)


def waves(frames: int, width: int) -> Tensor:
    r"""Return the initial embedding of the frames in a bottleneck: waves over the clip, so that each frame is unique.

    .. math::
        e_{t,j} = \pm\sqrt{2}\,\cos\frac{\pi\,k_j\,(t + 1/2)}{T}, \quad k_j = 1, 2, \dots, T - 1, 1, 2, \dots

    The signs alternate from one round of frequencies to the next. The mean over time is zero.

    Args:
        frames: Frames T.
        width: Width R of the bottleneck.

    Shape:
        ``(1, T, R)``

    Example:
        >>> waves(2, 3).squeeze(0).round(decimals=4).tolist()
        [[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]]
    """
    rounds, k = torch.arange(width) // max(1, frames - 1), 1 + torch.arange(width) % max(1, frames - 1)
    moments = (torch.arange(frames) + 0.5) / frames
    signs = 1 - 2 * (rounds % 2)
    return (math.sqrt(2) * signs * torch.cos(math.pi * moments[:, None] * k)).unsqueeze(0)
