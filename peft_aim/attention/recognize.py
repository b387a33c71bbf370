"""Finds the kind of temporal attention for an attention, by trying candidates on a copy with random weights.

Names and signatures only suggest candidates; results decide. A kind passes if it mixes the tokens within each
sequence, and no others, independently of their positions. A kind that replaces the attention's own forward must also
reproduce it wherever no spatial term acts. Channel attention (XCiT) passes as well: frames then determine how each
other's channels are mixed, and relations between frames can be learned from that (``benchmarks/token_mixers``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.attention.guesses import guesses
from peft_aim.attention.kinds import USERS_KINDS, Kind, OnGrid, Unrotated, in_words, multihead, plain, sequence_first
from peft_aim.attention.projected import Projected
from peft_aim.attention.without_space import LARGE, OwnForward, same
from peft_aim.tracing import Layout, copy_without_hooks, first_tensor, is_packed, plain_layer

BATCH_FIRST = Layout()
LENGTHS = (3, 5)  # of the sequences that kinds are tried on
LONG = 67  # longer than most windows


def find_kind(
    attention: nn.Module, shape: tuple[int, ...], arguments: dict[str, Any], layout: Layout = BATCH_FIRST
) -> Kind:
    """Find how an attention is run as temporal attention.

    Args:
        attention: The attention of a block.
        shape: Shape of the tokens that the block's forward calls it on.
        arguments: Other arguments of that call, by name.
        layout: The layout of these tokens.

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
    own = OwnForward(twin, shape, arguments, layout)
    width, positions = shape[layout.channels], math.prod(layout.positions(shape))
    observed: dict[str, None] = {}
    for kind in _candidates(attention, shape, arguments, layout):
        try:
            if isinstance(kind, Projected):
                own.check_reproduced(kind)
            check_mixes_frames(kind, twin, width, positions)
            return kind
        except Exception as error:  # whatever a foreign module raises is what to report
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            observed[f"{in_words(kind)}: {reason}"] = None
    tried = "; ".join(observed) or f"no kind fits tokens {shape} with channels on axis {layout.channels}"
    raise ValueError(f"{type(attention).__name__} cannot be used as temporal attention ({tried})")


def _candidates(attention: nn.Module, shape: tuple, arguments: dict[str, Any], layout: Layout) -> Iterator[Kind]:
    if type(attention) in USERS_KINDS:
        yield USERS_KINDS[type(attention)]
        return
    if isinstance(attention, nn.MultiheadAttention):
        yield multihead
        return
    if layout.channels == -1:
        yield sequence_first if layout.batch == 1 else plain
    if len(shape) == 4:
        yield OnGrid(layout.channels)
    yield from _rotations(arguments)
    yield from guesses(attention)


def _rotations(arguments: dict[str, Any]) -> Iterator[Unrotated]:
    """Iterate over the rotary embeddings among the arguments, recognized by cos**2 + sin**2 = 1."""
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
    """Check that a kind mixes the tokens within each sequence, and no others, independently of their positions.

    Args:
        kind: The kind to check.
        attention: An attention with random weights in float64.
        width: Token width D.
        positions: Number of spatial positions that the attention is made for. The order of a sequence of this length
            is tried as well, since a spatial bias fits there, and that of one that is longer than most windows.

    Raises:
        ValueError: If it does not, with the law that is violated.
    """
    generator = torch.Generator().manual_seed(1)

    def attend(*sequences: Tensor) -> Tensor:
        return first_tensor(kind(attention, torch.stack(sequences)))

    def drawn(length: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(length, width, generator=generator, dtype=torch.float64)
        return x, torch.randperm(length, generator=generator).roll(1)

    def check_order(order: Tensor, x: Tensor, y: Tensor, moved: Tensor) -> None:
        if not same(moved, y[order]):
            if same(attend(x[order])[0], y[order]):  # alone
                raise ValueError("sequences of a batch influence each other")
            raise ValueError("the result depends on positions in the sequence")

    for length in LENGTHS:
        x, order = drawn(length)
        y = attend(x)[0]
        if y.shape != x.shape:
            raise ValueError(f"the shape changes from {tuple(x.shape)} to {tuple(y.shape)}")
        changed = x.clone()
        changed[0] = torch.randn(width, generator=generator, dtype=torch.float64)
        moved, after = attend(x[order], changed)
        check_order(order, x, y, moved)
        if same(y[0] * x[1], y[1] * x[0]):
            raise ValueError("it only scales the channels of each token, as squeeze-and-excitation does")
        if same(after[1:], y[1:]):
            raise ValueError("tokens of a sequence do not influence each other")
    fitting = positions if positions <= LARGE else LONG
    for length in sorted({fitting, max(fitting, LONG)} - {1}):
        x, order = drawn(length)
        check_order(order, x, *attend(x, x[order]))


@torch.no_grad()
def random_twin(attention: nn.Module) -> nn.Module:
    """Copy an attention, in float64 on the CPU, with random weights: fresh ones hide terms that start at 0.

    Only the shapes of weights matter, so quantized or sharded layers become plain ones of the same widths.
    """
    generator = torch.Generator().manual_seed(0)
    packed = {part for part in attention.modules() if is_packed(part)}
    new: dict[int, Any] = {  # the copy of what is not copied as it is, for lack of memory or of a way
        id(parameter): nn.Parameter(torch.empty(parameter.shape, dtype=torch.float64), requires_grad=False)
        for part in attention.modules()
        for parameter in part.parameters(recurse=False)
        if part not in packed and parameter.is_floating_point()
    }
    new |= {id(part): plain_layer(part) for part in packed}
    on_meta = [buffer for buffer in attention.buffers() if buffer.device.type == "meta"]
    new |= {id(buffer): torch.zeros(buffer.shape, dtype=buffer.dtype) for buffer in on_meta}
    twin = copy_without_hooks(attention, new).to("cpu").double()
    twin.eval()  # may return nothing (LeViT)
    config = getattr(twin, "config", None)
    if getattr(config, "_attn_implementation", "eager") not in ("eager", "sdpa"):
        config._attn_implementation = "sdpa"  # flash kernels run neither on the CPU nor in float64
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        parameter.normal_(std=fan_in**-0.5, generator=generator)
    return twin
