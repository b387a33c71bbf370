"""How a frozen attention is called along time.

AIM runs a block's own attention once more, over the frames of one place, ``(B*N, T, D)``. Attentions differ in how
that must be done; each way is a *kind* here, a small callable ``kind(attention, x) -> output``, where the output is
a tensor or a tuple that starts with one. :func:`find_kind` tries the kinds on a copy of the attention with random
weights and takes the first that provably is self-attention over the sequence it gets, free of anything that belongs to
space.

Kinds call ``attention.forward``: hooks on an attention, AIM's spatial adapter and recorders of attention maps among
them, are for its call in space alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_aim.outputs import first_tensor

Kind = Callable[[nn.Module, Tensor], Any]


def plain(attention: nn.Module, x: Tensor) -> Any:
    """Call it on nothing but tokens: masks, biases and rotary embeddings of space are optional and left out."""
    return attention.forward(x)


def multihead(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Call torch's own module, which wants query, key and value."""
    x = x if attention.batch_first else x.transpose(0, 1)
    recorded = off_the_fast_path(attention, x)
    mixed = attention.forward(recorded, recorded, recorded, need_weights=False)[0]
    mixed = mixed if recorded is x else mixed.detach()
    return mixed if attention.batch_first else mixed.transpose(0, 1)


def off_the_fast_path(attention: nn.MultiheadAttention, query: Tensor) -> Tensor:
    """Make torch's own module round alike whether or not something before it is being trained.

    In evaluation mode it takes another kernel when no gradient is asked for. An adapter that is loaded for inference
    would then not give the very scores that it gave where it was trained.

    Returns:
        The query, or a copy of which gradients are recorded, if none would be otherwise.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return query
    if query.requires_grad or any(parameter.requires_grad for parameter in attention.parameters()):
        return query
    return query.detach().requires_grad_()


@dataclass(frozen=True)
class Unrotated:
    """Call an attention that insists on a rotary embedding with the neutral one, cos = 1 and sin = 0.

    Args:
        argument: Name of the argument that takes ``(cos, sin)``.
        width: Last axis of cos and sin.
    """

    argument: str
    width: int

    def __call__(self, attention: nn.Module, x: Tensor) -> Any:
        """Attend along ``(B*N, T, D)``."""
        cos = x.new_ones(x.shape[1], self.width)
        return attention.forward(x, **{self.argument: (cos, torch.zeros_like(cos))})


@dataclass(frozen=True)
class Projected:
    """Use the attention's own projections around plain softmax attention, so that its spatial bias stays out.

    For attentions that add a bias made for one window of space to the scores, whatever they are given (Swin, BEiT).
    What the attention does besides, dropout while it trains, stays out as well.

    Args:
        inner: Names of the projections to query, key and value, or of one to all three.
        out: Name of the output projection.
        heads: Number of heads.
    """

    inner: tuple[str, ...]
    out: str
    heads: int

    def __call__(self, attention: nn.Module, x: Tensor) -> Tensor:
        """Attend along ``(B*N, T, D)``."""
        biases = self.separate_biases(attention)
        projected = [attention.get_submodule(name)(x) for name in self.inner]
        query, key, value = projected if len(projected) == 3 else projected[0].chunk(3, dim=-1)
        if biases:
            query, value = query + biases[0], value + biases[1]
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B*N, heads, T, D / heads)
        return attention.get_submodule(self.out)(mixed.transpose(1, 2).flatten(2))

    @staticmethod
    def separate_biases(attention: nn.Module) -> list[nn.Parameter]:
        """Biases of query and value that are kept beside a projection without bias (BEiT)."""
        biases = [getattr(attention, name, None) for name in ("q_bias", "v_bias")]
        return [] if any(bias is None for bias in biases) else biases

    def used_parameters(self, attention: nn.Module) -> set[int]:
        """Identities of the parameters that a call reads."""
        modules = [attention.get_submodule(name) for name in (*self.inner, self.out)]
        parameters = [parameter for module in modules for parameter in module.parameters()]
        return {id(parameter) for parameter in parameters + self.separate_biases(attention)}


def find_kind(attention: nn.Module, shape: tuple[int, ...], kwargs: dict[str, Any]) -> Kind:
    """Find how an attention is called along time.

    Args:
        attention: The attention of a block.
        shape: Shape of the tokens that the block's forward calls it on.
        kwargs: Keyword arguments of that call.

    Returns:
        The first kind that passes :func:`check_attends_over_sequence`.

    Raises:
        ValueError: If none does; the message lists each kind with what was observed.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True)
        >>> find_kind(attention, (1, 5, 8), {}).__name__
        'multihead'
    """
    generator = torch.Generator().manual_seed(0)
    twin = _random_twin(attention, generator)
    observed = []
    for kind in _candidates(attention, kwargs):
        try:
            if isinstance(kind, Projected):
                _check_reproduces_forward(kind, twin, shape, generator)
            check_attends_over_sequence(kind, twin, shape[-1], generator)
            return kind
        except Exception as error:  # whatever a foreign module raises is the observation to report
            name = getattr(kind, "__name__", type(kind).__name__)
            observed.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    raise ValueError(f"{type(attention).__name__} cannot be run along time ({'; '.join(observed)})")


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
    return repr(attention), repr(plain_attributes), repr(shapes)


def check_attends_over_sequence(kind: Kind, attention: nn.Module, width: int, generator: torch.Generator) -> None:
    """Check that a call is softmax self-attention over the sequence, blind to positions, for sequences of any length.

    Args:
        kind: The call to check.
        attention: An attention with random weights in float64.
        width: Token width D.
        generator: Source of the random tokens.

    Raises:
        ValueError: If it is not, with the law that is broken.
    """

    def attend(x: Tensor) -> Tensor:
        return first_tensor(kind(attention, x))

    for length in (3, 5):
        x = torch.randn(2, length, width, generator=generator, dtype=torch.float64)
        y = attend(x)
        if y.shape != x.shape:
            raise ValueError(f"the shape changes from {tuple(x.shape)} to {tuple(y.shape)}")
        order = torch.randperm(length, generator=generator).roll(1)
        if not _same(attend(x[:, order]), y[:, order]):
            raise ValueError("the result depends on positions in the sequence")
        if not _same(attend(x[:1]), y[:1]):
            raise ValueError("sequences of a batch influence each other")
        changed = x.clone()
        changed[:, 0] += 1
        if _same(attend(changed)[:, 1:], y[:, 1:]):
            raise ValueError("tokens of a sequence do not influence each other")
    # Among many copies of one token, attention returns that token's value to every query. Channel attention doesn't.
    query, value = 0.1 * torch.randn(2, 1, 1, width, generator=generator, dtype=torch.float64)
    alone, drowned = attend(query), attend(torch.cat([query, value.expand(1, 256, -1)], dim=1))
    if (drowned[:, 0] - drowned[:, 1]).norm() > 0.5 * (alone[:, 0] - drowned[:, 1]).norm():
        raise ValueError("the result is not an average of values over the sequence")


def _check_reproduces_forward(kind: Projected, twin: nn.Module, shape: tuple, generator: torch.Generator) -> None:
    """Check that, without the parameters that it leaves out, the module's own forward computes the same."""
    used = kind.used_parameters(twin)
    bare = copy.deepcopy(twin)
    for parameter, copied in zip(twin.parameters(), bare.parameters(), strict=True):
        if id(parameter) not in used:
            copied.zero_()
    places = shape[1:-1]
    if len(places) == 2:  # an attention over windows of (B, H, W, D): one window of it
        window = getattr(twin, "window_size", places)
        places = tuple(window) if isinstance(window, (tuple, list)) else (window, window)
    x = torch.randn(2, *places, shape[-1], generator=generator, dtype=torch.float64)
    own = first_tensor(bare(x)).flatten(1, -2)
    if not _same(kind(bare, x.flatten(1, -2)), own):
        raise ValueError("its projections around softmax attention do not reproduce its own forward")


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether results agree, up to the softmax in float32 that many attentions insist on."""
    return torch.allclose(a, b, rtol=0, atol=1e-4)


def _candidates(attention: nn.Module, kwargs: dict[str, Any]) -> Iterator[Kind]:
    if isinstance(attention, nn.MultiheadAttention):
        yield multihead
        return
    yield plain
    for name, value in kwargs.items():
        if _is_rotation(value):
            yield Unrotated(name, value[0].shape[-1])
    projected = _read_projections(attention)
    if projected is not None:
        yield projected


def _is_rotation(value: Any) -> bool:
    """Whether an argument is a rotary embedding, (cos, sin): that shows in its numbers."""
    if not (isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(t, Tensor) for t in value)):
        return False
    cos, sin = (t.float() for t in value)
    return cos.shape == sin.shape and torch.allclose(cos**2 + sin**2, torch.ones_like(cos), atol=1e-2)


def _read_projections(attention: nn.Module) -> Projected | None:
    """Read which linear layers lead to query, key and value and which one out, by their names and widths."""
    linears = {name: module for name, module in attention.named_modules() if isinstance(module, nn.Linear)}
    heads = getattr(attention, "num_heads", getattr(attention, "num_attention_heads", None))
    if not isinstance(heads, int):
        return None
    fused = [name for name, m in linears.items() if m.out_features == 3 * m.in_features or "qkv" in name]
    single = [name for name in linears if name.rpartition(".")[2][0] in "qkv"]
    inner = fused if len(fused) == 1 else sorted(single, key=lambda name: "qkv".index(name.rpartition(".")[2][0]))
    rest = [name for name in linears if name not in inner]
    if len(inner) not in (1, 3) or not rest:
        return None
    return Projected(tuple(inner), rest[-1], heads)


@torch.no_grad()
def _random_twin(attention: nn.Module, generator: torch.Generator) -> nn.Module:
    """Copy an attention with random weights, so that what fresh weights hide (a bias that starts at 0) shows."""
    twin = copy.deepcopy(attention).eval()
    config = getattr(twin, "config", None)
    if hasattr(config, "_attn_implementation"):
        config._attn_implementation = "eager"  # the copy runs on the CPU in float64, flash kernels don't
    there = next(twin.parameters(), torch.empty(0)).device.type != "meta"
    twin = (twin.to("cpu") if there else _materialize(twin)).double()
    for module in twin.modules():  # hooks are others' business
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
        fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
    return twin


def _materialize(attention: nn.Module) -> nn.Module:
    """Give an attention that is on "meta" memory: zeros where nothing random is put later, such as indices."""
    attention = attention.to_empty(device="cpu")
    for buffer in attention.buffers():
        buffer.zero_()
    return attention
