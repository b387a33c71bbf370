"""Finds the parts of a foreign block, the norm, the attention and the MLP, from how they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from peft_aim.attention import Kind, find_kind, signature
from peft_aim.trace import Call

MIXERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention)


@dataclass(frozen=True)
class PartNames:
    """Names, inside a block, that the user gives where structure alone doesn't explain it."""

    norm1: str | None = None
    attention: str | None = None
    norm2: str | None = None
    mlp: str | None = None


@dataclass(frozen=True)
class Anatomy:
    """What AIM needs to know of a block.

    Attributes:
        norm1: Name, inside the block, of the norm before attention.
        attention: Name of the attention.
        norm2: Name of the norm before the MLP.
        mlp: Name of the MLP.
        width: Token width D.
        attend: How the attention is called along time.
    """

    norm1: str
    attention: str
    norm2: str
    mlp: str
    width: int
    attend: Kind


class NotABlock(ValueError):  # noqa: N818 (it is an answer more than an error)
    """Raised for a module that is no pre-norm transformer block, with what is missing."""


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: a leaf that says so in its class name, LayerNorm, RMSNorm and so on.

    Example:
        >>> is_norm(nn.LayerNorm(4)), is_norm(nn.Linear(4, 4))
        (True, False)
    """
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def looks_like_a_block(call: Call) -> bool:
    """Whether a call keeps the shape of its tokens, and has a norm and two or more layers that mix as its parts."""
    if call.given is None or call.returned is None or call.given.shape != call.returned.shape:
        return False
    norms = any(is_norm(part.module) for part in call.children)
    return len(call.given.shape) >= 3 and norms and sum(map(_mixes, call.children)) >= 2


def has_attention(call: Call) -> bool:
    """Whether a part of it is called attention."""
    return any("attn" in (name := _describe(part)) or "attention" in name for part in call.children if _mixes(part))


def examine(call: Call, images: int, names: PartNames, kinds: dict[tuple, Kind]) -> Anatomy:
    """Find the parts of a block from a traced call of it.

    The block has to be built as ``x + attention(norm1(x))`` followed by ``x + mlp(norm2(x))``, with whatever scaling
    and dropping on the branches it likes.

    Args:
        call: A traced call of the block.
        images: Number of images in the traced batch, which has to be the block's leading axis.
        names: Names of parts to use instead of those found.
        kinds: How attentions of other blocks are called along time, by signature; this one's is added.

    Raises:
        NotABlock: If it is not built so, with what was seen instead.
    """
    shape = call.given.shape
    if shape[0] != images:
        raise NotABlock(f"its tokens {shape} do not lead with the batch of {images} images")
    norm1 = _part(call.children, names.norm1, "norm1_module", lambda c: is_norm(c.module) and c.given == call.given)
    if norm1 is None:
        raise NotABlock("no norm takes its input before attention does")
    rest = _behind(call.children, norm1)
    attention = _part(rest, names.attention, "attention_module", _mixes)
    if attention is None or attention.given is None:
        raise NotABlock("nothing that could be attention is called, on tokens first, behind its first norm")
    rest = _behind(rest, attention)
    norm2 = _part(rest, names.norm2, "norm2_module", lambda c: is_norm(c.module))
    if norm2 is None:
        raise NotABlock("no norm is called behind its attention")
    mlp = _part(rest, names.mlp, "mlp_module", lambda c: _mixes(c) and c.given == norm2.returned)
    if mlp is None or None in (mlp.given, mlp.returned) or mlp.given.shape != mlp.returned.shape:
        raise NotABlock("no MLP, from the second norm's output to tokens of the same shape, is called")
    _check_own(call, (norm1, attention, norm2, mlp))
    known = (attention, mlp)
    others = [_inside(call, c) for c in call.children if _mixes(c) and not any(part in c.walk() for part in known)]
    if others and not (names.attention and names.mlp):
        raise NotABlock(
            f"besides attention and MLP it calls {', '.join(others)} (if that is all right, name attention_module and "
            "mlp_module)"
        )
    width = norm1.module.weight.numel() if getattr(norm1.module, "weight", None) is not None else shape[-1]
    if {shape[-1], attention.given.shape[-1], mlp.given.shape[-1]} != {width}:
        raise NotABlock(
            f"its norm shows tokens of width {width}, but it, its attention and its MLP are called on "
            f"{shape}, {attention.given.shape} and {mlp.given.shape}"
        )
    alike = signature(attention.module)
    if alike not in kinds:  # most blocks are copies of each other
        try:
            kinds[alike] = find_kind(attention.module, attention.given.shape, attention.kwargs)
        except ValueError as error:
            raise NotABlock(str(error)) from error
    return Anatomy(*(_inside(call, part) for part in (norm1, attention, norm2, mlp)), width, kinds[alike])


def _part(parts: list[Call], name: str | None, option: str, wanted: Callable[[Call], bool]) -> Call | None:
    """Return the part that the user named, or else the first that is wanted."""
    if name is None:
        return next((part for part in parts if wanted(part)), None)
    for call in (call for part in parts for call in part.walk()):
        if call.name == name or call.name.endswith(f".{name}"):
            return call
    called = ", ".join(part.name.rpartition(".")[2] for part in parts)
    raise NotABlock(f"{option}={name!r} is not called there; {called or 'nothing'} is")


def _check_own(block: Call, parts: tuple[Call, ...]) -> None:
    """Check that the block alone calls its parts, once: AIM hangs its adapters on them."""
    for part in parts:
        if not part.name.startswith(f"{block.name}."):
            raise NotABlock(f"it shares {part.name} with another block")
        if sum(call.module is part.module for call in block.walk()) > 1:
            raise NotABlock(f"it calls {_inside(block, part)} more than once")


def _behind(parts: list[Call], part: Call) -> list[Call]:
    position = next((i for i, call in enumerate(parts) if part in call.walk()), len(parts))
    return parts[position + 1 :]


def _inside(block: Call, part: Call) -> str:
    return part.name.removeprefix(f"{block.name}.")


def _describe(call: Call) -> str:
    return f"{call.name.rpartition('.')[2]} {type(call.module).__name__}".lower()


def _mixes(call: Call) -> bool:
    return any(isinstance(module, MIXERS) for module in call.module.modules())
