"""Finds how an attention is called along time, by trying on a copy with random weights what may be.

Names and signatures only suggest; what counts is what comes out. A kind passes if it mixes the tokens of the sequence
that it gets, and no others, blind to positions; if it replaces the attention's own forward, it must besides give the
same results wherever nothing spatial is at work. Attention between channels (XCiT) passes, too: frames then say how
each other's channels are mixed, from which relations between frames can be learned (``benchmarks/token_mixers.py``).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.attention import USERS_KINDS, Kind, OnGrid, Unrotated, in_words, multihead, plain
from peft_aim.outputs import first_tensor
from peft_aim.parts import copy_without_hooks, is_norm, norm_width
from peft_aim.projected import Projected, guesses

# What pools queries or keys over an image is made of, together with norms over all channels.
POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d)
SPATIAL = (nn.Conv2d, *POOLS, nn.GELU, nn.ReLU)


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
    generator = torch.Generator().manual_seed(0)
    twin = _random_twin(attention, generator)
    width, places = shape[channels], math.prod(shape[1:]) // shape[channels]
    own = (places,) if 1 < places <= 1024 else ()  # at its own length a bias of space fits
    lengths = (3, 5, *own, 67)  # the last is longer than windows are
    references: dict[frozenset, list[Reference]] = {}
    observed: dict[str, None] = {}
    for kind in _candidates(attention, shape, arguments, channels):
        try:
            if isinstance(kind, Projected):
                used = frozenset(kind.used_parameters(twin))
                if used not in references:  # most guesses differ in how they use the same parts
                    references[used] = _references(kind, twin, shape, arguments, channels)
                _check_reproduces_forward(kind, twin, references[used])
            check_mixes_frames(kind, twin, width, lengths, generator)
            return kind
        except Exception as error:  # whatever a foreign module raises is the observation to report
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            observed[f"{in_words(kind)}: {reason}"] = None
    tried = "; ".join(observed) or f"no way to call it is known for tokens {shape} with channels on axis {channels}"
    raise ValueError(f"{type(attention).__name__} cannot be run along time ({tried})")


def signature(attention: nn.Module) -> tuple:
    """Return what attentions have in common that are called alike: class, parts, shapes, and plain attributes.

    Example:
        >>> signature(nn.MultiheadAttention(8, 2)) == signature(nn.MultiheadAttention(8, 4))
        False
    """
    plain_attributes = [
        (name, key, value)
        for name, module in attention.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, tuple))
    ]
    shapes = [(name, tuple(parameter.shape)) for name, parameter in attention.named_parameters()]
    content = [(name, tuple(buffer.shape), _sum(buffer)) for name, buffer in attention.named_buffers()]
    return repr(attention), repr(plain_attributes), repr(shapes), repr(content)


def _sum(buffer: Tensor) -> float | None:
    return None if buffer.device.type == "meta" else float(buffer.double().nan_to_num().sum())


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


def check_mixes_frames(
    kind: Kind, attention: nn.Module, width: int, lengths: tuple[int, ...], generator: torch.Generator
) -> None:
    """Check that a call mixes the tokens of a sequence, and no others, blind to positions.

    Args:
        kind: The call to check.
        attention: An attention with random weights in float64.
        width: Token width D.
        lengths: Numbers of frames to try.
        generator: Source of the random tokens.

    Raises:
        ValueError: If it is not, with the law that is broken.
    """

    def attend(x: Tensor) -> Tensor:
        return first_tensor(kind(attention, x))

    for length in lengths:
        x = torch.randn(2, length, width, generator=generator, dtype=torch.float64)
        y = attend(x)
        if y.shape != x.shape:
            raise ValueError(f"the shape changes from {tuple(x.shape)} to {tuple(y.shape)}")
        order = torch.randperm(length, generator=generator).roll(1)
        if not _same(attend(x[:, order]), y[:, order]):
            raise ValueError("the result depends on positions in the sequence")
        if not _same(attend(x[:1]), y[:1]):
            raise ValueError("sequences of a batch influence each other")
        if _same(y[:, 0] * x[:, 1], y[:, 1] * x[:, 0]):
            raise ValueError("each token only has its channels scaled, as by squeeze-and-excitation")
        changed = x.clone()
        changed[:, 0] = torch.randn(width, generator=generator, dtype=torch.float64)
        if _same(attend(changed)[:, 1:], y[:, 1:]):
            raise ValueError("tokens of a sequence do not influence each other")


# An attention with nothing spatial in it, tokens, its own result, and the call that gave it.
Reference = tuple[nn.Module, Tensor, Tensor, Callable[[Tensor], Tensor]]


def _check_reproduces_forward(kind: Projected, twin: nn.Module, references: list[Reference]) -> None:
    """Check that, without what is spatial in it, the module's own forward computes the same."""
    for bare, x, own, call in references:
        if _same(first_tensor(kind(bare, x.flatten(1, -2))), own.flatten(1, -2)):
            _check_leaves_out_space_alone(kind, twin, bare, x, own, call)
            return
    raise ValueError("they do not reproduce its own forward")


def _check_leaves_out_space_alone(
    kind: Projected, twin: nn.Module, bare: nn.Module, x: Tensor, own: Tensor, call: Callable[[Tensor], Tensor]
) -> None:
    """Check that what a kind leaves out tells places apart, which a temperature, a gate or the like does not."""
    used, places, generator = kind.used_parameters(bare), x[0, ..., 0].numel(), torch.Generator().manual_seed(2)
    orders = [torch.randperm(places, generator=generator) for _ in range(8)]  # a small grid has symmetries

    def is_blind() -> bool:
        mixed = call(x).flatten(1, -2)
        return all(_same(call(x.flatten(1, -2)[:, o].view_as(x)).flatten(1, -2), mixed[:, o]) for o in orders)

    for name, parameter in [(n, p) for n, p in bare.named_parameters() if id(p) not in used]:
        parameter.copy_(twin.get_parameter(name))
        _forget_caches(bare)
        if places > 2 and not _same(call(x), own) and is_blind():
            raise ValueError(f"they leave out {name}, which has nothing to do with places")
        parameter.zero_()
    _forget_caches(bare)


def _references(
    kind: Projected, twin: nn.Module, shape: tuple, arguments: dict[str, Any], channels: int
) -> list[Reference]:
    """Run an attention's own forward without what is spatial in it.

    What a kind leaves out is put to zero, or replaced by the identity, so that biases vanish and nothing is pooled.
    """
    found = []
    pools = any(isinstance(module, POOLS) or _reaches_out(module) for module in twin.modules())
    for neutralize in (_without_parameters, _without_layers) if pools else (_without_parameters,):
        bare = neutralize(twin, kind)
        for places, given in _calls(twin, shape, arguments, channels):
            x = torch.randn(2, *places, shape[channels], generator=torch.Generator().manual_seed(1)).double()
            call = partial(_call, bare, given, channels)
            try:
                own = call(x)
            except Exception:  # of another size than it is made for, or without a layer that it needs
                continue
            if own.shape == x.shape:
                found.append((bare, x, own, call))
    return found


def _calls(
    attention: nn.Module, shape: tuple, arguments: dict[str, Any], channels: int
) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """Return places of tokens, and other arguments, to call an attention on: all that there were, or one window."""
    given = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
    own = shape[1:-1] if channels == -1 else shape[2:]
    window = next((getattr(attention, n) for n in ("window_size", "ws") if getattr(attention, n, None)), None)
    if window is None:
        return [(own, given), *([((1, own[1]), given)] if len(own) == 2 else [])]  # perhaps a window is one row
    grid = tuple(window) if isinstance(window, (tuple, list)) else (window, window)
    at_window = {name: grid if _is_size(value) else value for name, value in given.items()}
    windows = [grid] if len(own) == 2 else [(grid[0] * grid[1],), grid[:1]]
    return [(own, given), *((window, at_window) for window in windows)]


def _is_size(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(n, int) for n in value)


def _without_parameters(twin: nn.Module, kind: Projected) -> nn.Module:
    bare = copy.deepcopy(twin)
    used = kind.used_parameters(bare)
    for parameter in bare.parameters():
        if id(parameter) not in used:
            parameter.zero_()
    _forget_caches(bare)
    return bare


def _forget_caches(attention: nn.Module) -> None:
    """Make an attention forget a bias that it has cached for evaluation (LeViT)."""
    attention.train()
    attention.eval()


def _call(attention: nn.Module, arguments: dict[str, Any], channels: int, x: Tensor) -> Tensor:
    return first_tensor(attention(x.movedim(-1, channels), **arguments)).movedim(channels, -1)


def _reaches_out(module: nn.Module) -> bool:
    """Whether a module is a convolution over more than one pixel."""
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)


def _without_layers(twin: nn.Module, kind: Projected) -> nn.Module:
    bare = _without_parameters(twin, kind)
    used = kind.used_parameters(bare)
    width = next(bare.get_submodule(kind.inner[0]).parameters()).shape[1]
    for name, module in list(bare.named_modules()):
        spatial = isinstance(module, SPATIAL) or (is_norm(module) and norm_width(module) == width)
        if name and spatial and not any(id(parameter) in used for parameter in module.parameters()):
            parent, _, last = name.rpartition(".")
            setattr(bare.get_submodule(parent), last, nn.Identity())
    return bare


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether results agree, up to the softmax in float32 that many attentions insist on."""
    return torch.allclose(a, b, rtol=0, atol=1e-4)


@torch.no_grad()
def _random_twin(attention: nn.Module, generator: torch.Generator) -> nn.Module:
    """Copy an attention with random weights, so that what fresh weights hide (a bias that starts at 0) shows."""
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
