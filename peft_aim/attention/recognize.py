"""Finds how an attention is called along time, by trying on a copy with random weights what may be.

Names and signatures only suggest; what counts is what comes out. A kind passes if it mixes the tokens of the sequence
that it gets, and no others, blind to positions; if it replaces the attention's own forward, it must besides give the
same results wherever nothing spatial is at work. Attention between channels (XCiT) passes, too: frames then say how
each other's channels are mixed, from which relations between frames can be learned (``benchmarks/token_mixers.py``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.attention.kinds import USERS_KINDS, Kind, OnGrid, Unrotated, in_words, multihead, plain
from peft_aim.attention.projected import Projected, guesses
from peft_aim.attention.without_space import LARGE, OwnForward, same
from peft_aim.tracing import copy_without_hooks, first_tensor

LENGTHS = (3, 5, 67)  # of sequences that kinds are tried on; the last is longer than windows are


def find_kind(attention: nn.Module, shape: tuple[int, ...], arguments: dict[str, Any], channels: int = -1) -> Kind:
    """Find how an attention is called along time.

    Args:
        attention: The attention of a block.
        shape: Shape of the tokens that the block's forward calls it on.
        arguments: Other arguments of that call, by name.
        channels: Axis of the channels in these tokens, -1 or 1.

    Returns:
        The first kind that passes :func:`check_mixes_frames`.

    Raises:
        ValueError: If none does; the message lists each kind with what was observed.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True)
        >>> find_kind(attention, (1, 5, 8), {}).__name__
        'multihead'
    """
    twin = random_twin(attention)
    own = OwnForward(twin, shape, arguments, channels)
    width, positions = shape[channels], math.prod(shape[1:]) // shape[channels]
    observed: dict[str, None] = {}
    for kind in _candidates(attention, shape, arguments, channels):
        try:
            if isinstance(kind, Projected):
                own.check_reproduced(kind)
            check_mixes_frames(kind, twin, width, positions)
            return kind
        except Exception as error:  # whatever a foreign module raises is the observation to report
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            observed[f"{in_words(kind)}: {reason}"] = None
    tried = "; ".join(observed) or f"no way to call it is known for tokens {shape} with channels on axis {channels}"
    raise ValueError(f"{type(attention).__name__} cannot be run along time ({tried})")


def _candidates(attention: nn.Module, shape: tuple, arguments: dict[str, Any], channels: int) -> Iterator[Kind]:
    if type(attention) in USERS_KINDS:
        yield USERS_KINDS[type(attention)]
        return
    if isinstance(attention, nn.MultiheadAttention):
        yield multihead
        return
    if channels == -1:
        yield plain
    if len(shape) == 4:
        yield OnGrid(channels)
    yield from _rotations(arguments)
    yield from guesses(attention)


def _rotations(arguments: dict[str, Any]) -> Iterator[Unrotated]:
    """Iterate over the rotary embeddings among the arguments, (cos, sin) in one or in two: that shows in numbers."""
    for name, value in arguments.items():
        if isinstance(value, (tuple, list)) and len(value) == 2 and _is_rotation(*value):
            yield Unrotated((name,), value[0].shape[-1], value[0].ndim)
    for (name, cos), (other, sin) in itertools.permutations(arguments.items(), 2):
        if _is_rotation(cos, sin) and cos.float().mean() > sin.float().mean():
            yield Unrotated((name, other), cos.shape[-1], cos.ndim)


def _is_rotation(cos: Any, sin: Any) -> bool:
    if not (isinstance(cos, Tensor) and isinstance(sin, Tensor) and cos.shape == sin.shape and cos.ndim >= 2):
        return False
    cos, sin = cos.float(), sin.float()
    return torch.allclose(cos**2 + sin**2, torch.ones_like(cos), atol=1e-2)


def check_mixes_frames(kind: Kind, attention: nn.Module, width: int, positions: int) -> None:
    """Check that a call mixes the tokens of a sequence, and no others, blind to positions.

    Args:
        kind: The call to check.
        attention: An attention with random weights in float64.
        width: Token width D.
        positions: Number of spatial positions that the attention is made for. At this very length, where a spatial
            bias would fit, it must be blind to positions, too.

    Raises:
        ValueError: If it is not, with the law that is broken.
    """
    generator = torch.Generator().manual_seed(1)

    def attend(x: Tensor) -> Tensor:
        return first_tensor(kind(attention, x))

    def check_blind(x: Tensor) -> Tensor:
        y, order = attend(x), torch.randperm(x.shape[1], generator=generator).roll(1)
        if y.shape != x.shape:
            raise ValueError(f"the shape changes from {tuple(x.shape)} to {tuple(y.shape)}")
        if not same(attend(x[:, order]), y[:, order]):
            raise ValueError("the result depends on positions in the sequence")
        return y

    for length in LENGTHS:
        x = torch.randn(2, length, width, generator=generator, dtype=torch.float64)
        y = check_blind(x)
        if not same(attend(x[:1]), y[:1]):
            raise ValueError("sequences of a batch influence each other")
        if same(y[:, 0] * x[:, 1], y[:, 1] * x[:, 0]):
            raise ValueError("each token only has its channels scaled, as by squeeze-and-excitation")
        changed = x.clone()
        changed[:, 0] = torch.randn(width, generator=generator, dtype=torch.float64)
        if same(attend(changed)[:, 1:], y[:, 1:]):
            raise ValueError("tokens of a sequence do not influence each other")
    if 1 < positions <= LARGE:
        check_blind(torch.randn(1, positions, width, generator=generator, dtype=torch.float64))


@torch.no_grad()
def random_twin(attention: nn.Module) -> nn.Module:
    """Copy an attention with random weights, so that what fresh weights hide (a bias that starts at 0) shows."""
    generator = torch.Generator().manual_seed(0)
    twin = copy_without_hooks(attention)
    twin.eval()
    config = getattr(twin, "config", None)
    if getattr(config, "_attn_implementation", "eager") not in ("eager", "sdpa"):
        config._attn_implementation = "sdpa"  # the copy runs on the CPU in float64, flash kernels don't
    there = next(twin.parameters(), torch.empty(0)).device.type != "meta"
    twin = (twin.to("cpu") if there else _materialize(twin)).double()
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
    return twin


def _materialize(attention: nn.Module) -> nn.Module:
    """Give an attention that is on "meta" memory: zeros where nothing random is put later, such as indices."""
    attention = attention.to_empty(device="cpu")
    for buffer in attention.buffers():
        buffer.zero_()
    return attention
