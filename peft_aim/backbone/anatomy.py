"""Finds the parts of a foreign block, its norms, attention and MLP, from how they are called.

Two ways to order a branch are understood: ``x + attention(norm(x))`` and, with the norm behind, ``x +
norm(attention(x))``. A norm may also be missing, or be the attention's own business.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peft_aim.attention import Kind, find_kind, find_output, random_twin
from peft_aim.tracing import Call, Handle, acts_on_each_position, channel_axis, is_norm, mixes, norm_width, traits

Kinds = dict[Hashable, tuple[Kind, str | None]]


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
        norm1: Name, inside the block, of the attention's norm, None if the block has none.
        attention: Name of the attention.
        norm2: Name of the MLP's norm, None if the block has none.
        mlp: Name of the MLP, or of its first half if it is called in two; None if it is in a block of its own.
        mlp_end: Name of its second half, else the MLP once more.
        width: Token width D.
        attend: How the attention is called along time.
        output: Name, inside the attention, of the linear layer that ends it, None if none does.
        norm_first: Whether norms come before attention and MLP, and not behind.
        channels: Axis of the channels, -1 or 1, in the tokens that the block is called on.
        norm_channels: The same for the attention's norm.
        attention_channels: The same for the attention.
        mlp_channels: The same for the MLP.
        groups: Number of patch groups, each with tokens of its own, that an image is split into along the leading axis
            (MobileViT).
        others: Names of further parts that mix features or norm them.
    """

    norm1: str | None
    attention: str
    norm2: str | None
    mlp: str | None
    mlp_end: str | None
    width: int
    attend: Kind
    output: str | None = None
    norm_first: bool = True
    channels: int = -1
    norm_channels: int = -1
    attention_channels: int = -1
    mlp_channels: int = -1
    groups: int = 1
    others: tuple[str, ...] = ()


class NotABlock(ValueError):  # noqa: N818 (it is an answer more than an error)
    """Raised for what AIM cannot adapt as a block, with what was seen instead.

    Args:
        reason: What was seen.
        understood: Whether that tells what it is, so that leaving it out is right (class attention, say).
    """

    def __init__(self, reason: str, understood: bool = False) -> None:
        super().__init__(reason)
        self.understood = understood


def looks_like_a_block(call: Call) -> bool:
    """Whether a call takes and returns tokens, and has attention, or a norm and two or more parts that mix."""
    if None in (call.given, call.returned) or min(len(call.given.shape), len(call.returned.shape)) < 3:
        return False
    parts = [part for part in call.parts if mixes(part.module)]
    attention = any(_is_attention(part) for part in parts)
    return attention or (len(parts) >= 2 and any(is_norm(part.module) for part in call.parts))


def has_attention(call: Call) -> bool:
    """Whether a part of it, that is no block itself, is called attention."""
    return any(_is_attention(part) for part in call.parts)


def examine(call: Call, images: int, names: PartNames, kinds: Kinds) -> Anatomy:
    """Find the parts of a block from a traced call of it.

    What is found is a well-founded guess; :func:`peft_aim.backbone.probes.misbuilt` has the last word.

    Args:
        call: A traced call of the block.
        images: Number of images in the traced batch, which the block's leading axis has to be, or a multiple.
        names: Names of parts to use instead of those found.
        kinds: How attentions of other blocks are called along time and end, by their traits; this one's is added.

    Raises:
        NotABlock: If it is not built so, with what was seen instead.
    """
    shape = call.given.shape
    if call.returned.shape != shape:
        raise NotABlock(
            f"it makes {call.returned.shape} of tokens {shape}, as class attention, pooling and downsampling do",
            understood=has_attention(call),
        )
    if shape[0] % images:
        raise NotABlock(f"its tokens {shape} do not lead with the batch of {images} images")
    attention, norm1, norm_first = _attention(call, names)
    norm2, mlp, mlp_end = _mlp(call, attention, norm1, norm_first, names)
    parts = [part for part in (norm1, attention, norm2, mlp, mlp_end) if part is not None]
    _check_own(call, parts)
    beside = [c for c in call.parts if not any(part in c.walk() for part in parts)]
    others = [c for c in beside if mixes(c.module) or is_norm(c.module)]
    second = [c for c in others if _is_attention(c)]
    if second and not names.attention:
        raise NotABlock(f"besides {_inside(call, attention)} it calls another attention, {_inside(call, second[0])}")
    width = _width(call, norm1 or norm2, attention)
    if norm1 is not None and not acts_on_each_position(norm1.module, norm1.given.shape, width):
        raise NotABlock(
            f"its norm {_inside(call, norm1)}, a {type(norm1.module).__name__}, is one over all places, so attention "
            "along time would mix places",
            understood=has_attention(call),
        )
    axes = {p: -1 if p is None else channel_axis(p.module, p.given.shape, width) for p in (norm1, attention, mlp)}
    own = channel_axis(call.module, shape, width)
    if norm1 is not None:  # whose axis is certain, even where D is the height or width of an image
        own = axes[norm1] if norm1.given.shape == shape else own
        axes |= {part: axes[norm1] for part in (attention, mlp) if part and part.given.shape == norm1.given.shape}
        if axes[norm1] == 1 and len(norm1.given.shape) != len(shape):
            raise NotABlock(f"its norm gets tokens {norm1.given.shape}, of other axes than its own, {shape}")
    _check_attends_to_itself(attention, width)
    if None in (own, *axes.values()):
        shapes = ", ".join(str(part.given.shape) for part in (call, attention, mlp) if part)
        raise NotABlock(
            f"its norm or attention shows tokens of width {width}, but it, its attention and its MLP are called on "
            f"{shapes}"
        )
    attend, output = _kind(attention, axes[attention], width, kinds, understood=has_attention(call))
    return Anatomy(
        *(part and _inside(call, part) for part in (norm1, attention, norm2, mlp, mlp_end)),
        width=width,
        attend=attend,
        output=output,
        norm_first=norm_first,
        channels=own,
        norm_channels=axes[norm1],
        attention_channels=axes[attention],
        mlp_channels=axes[mlp],
        groups=shape[0] // images,
        others=tuple(_inside(call, other) for other in others),
    )


def _check_attends_to_itself(attention: Call, width: int) -> None:
    for name, value in attention.arguments.items():
        tokens = isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3 and not value.is_meta
        tokens = tokens and value.shape[-1] == width and value.shape[0] == attention.given.shape[0]
        # Of the two images, which are alike; what a rotation has for each head isn't.
        others = tokens and value.shape[1] != attention.given.shape[1] and torch.equal(value[0], value[-1])
        if (others or name in ("key", "value")) and Handle.of(value) != attention.given:
            raise NotABlock(
                f"its attention gets further tokens {tuple(value.shape)} as {name}, so it attends to something else "
                "than its own tokens",
                understood=True,
            )


def _attention(block: Call, names: PartNames) -> tuple[Call, Call | None, bool]:
    """Return the attention, its norm, and whether that comes first."""
    parts = block.parts
    norms = [part for part in parts if is_norm(part.module)]
    attention = _named(parts, names.attention, "attention_module") or next(filter(_is_attention, parts), None)
    if attention is None:
        rest = _behind(parts, norms[0]) if norms else []
        rest = rest if sum(mixes(part.module) for part in rest) > 1 else parts
        attention = next((part for part in rest if mixes(part.module) and not _holds_attention(part)), None)
    if attention is None or None in (attention.given, attention.returned):
        raise NotABlock("nothing that could be attention is called, on tokens first, in it")
    if attention.given.numel != attention.returned.numel:
        raise NotABlock(
            f"its {_inside(block, attention)} makes {attention.returned.shape} of tokens {attention.given.shape}, "
            "which no attention between the tokens does",
            understood=_is_attention(attention),
        )
    place = _position(parts, attention)
    norm1 = _named(parts, names.norm1, "norm1_module")
    if norm1 is not None:
        return attention, norm1, _position(parts, norm1) < place
    before = [norm for norm in norms if _position(parts, norm) < place]
    behind = [norm for norm in norms if _position(parts, norm) > place]
    if not before and len(behind) > 1:  # norms behind attention and MLP, unless both come before the MLP
        between = parts[_position(parts, behind[0]) : _position(parts, behind[1])]
        if any(mixes(part.module) for part in between):
            return attention, behind[0], False
    return attention, before[-1] if before else None, True


def _mlp(
    block: Call, attention: Call, norm1: Call | None, norm_first: bool, names: PartNames
) -> tuple[Call | None, Call | None, Call | None]:
    """Return the MLP's norm, and the part or the two parts that are the MLP, None where there is none."""
    tail = _behind(block.parts, attention if norm_first else norm1)
    norms = [part for part in tail if is_norm(part.module)]
    mixers = [part for part in tail if mixes(part.module)]
    norm2 = _named(tail, names.norm2, "norm2_module")
    mlp = _named(tail, names.mlp, "mlp_module")
    if mlp is None and not mixers:
        return None, None, None
    if norm2 is None and norm_first:  # the last one before the MLP
        norm2 = next((n for n in reversed(norms) if _position(tail, n) < _position(tail, mlp or mixers[-1])), None)
    elif norm2 is None:  # the first one behind it
        norm2 = next((n for n in norms if _position(tail, n) > _position(tail, mlp or mixers[0])), None)
    if mlp is None and norm2 is not None and norm_first:
        mlp = next(part for part in mixers if _position(tail, part) > _position(tail, norm2))
    mlp = mlp or (mixers[0] if norm2 is not None else mixers[-1])
    end = passed = mlp
    for part in _behind(tail, mlp):
        if None not in (part.given, part.returned) and part.given == passed.returned:
            passed = part
            end = part if mixes(part.module) else end
    if None in (mlp.given, end.returned) or len(mlp.given.shape) < 3 or mlp.given.numel != end.returned.numel:
        raise NotABlock("no MLP, from tokens to tokens of the same shape, is called behind its attention")
    return norm2, mlp, end


def _width(block: Call, norm: Call | None, attention: Call) -> int:
    """Return the token width D: that of a norm, or else of the first layer of the attention."""
    if norm is not None and norm_width(norm.module):
        return norm_width(norm.module)
    for module in attention.module.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            return module.weight.shape[1]
        if isinstance(module, nn.MultiheadAttention):
            return module.embed_dim
    raise NotABlock(f"neither a norm nor its {_inside(block, attention)} tells how wide its tokens are")


def _kind(attention: Call, channels: int, width: int, kinds: Kinds, understood: bool) -> tuple[Kind, str | None]:
    alike = (traits(attention.module), channels)
    if alike not in kinds:  # most blocks are copies of each other
        try:
            kind = find_kind(attention.module, attention.given.shape, attention.arguments, channels)
        except ValueError as error:
            raise NotABlock(str(error), understood) from error
        kinds[alike] = kind, find_output(kind, random_twin(attention.module), width)
    return kinds[alike]


def _named(parts: list[Call], name: str | None, option: str) -> Call | None:
    """Return the part that the user named, if so."""
    if name is None:
        return None
    for call in (call for part in parts for call in part.walk()):
        if call.name == name or call.name.endswith(f".{name}"):
            if mixes(call.module) == option.startswith("norm"):
                raise NotABlock(f"{option}={name!r} is a {type(call.module).__name__} there, which cannot be meant")
            return call
    called = ", ".join(part.name.rpartition(".")[2] for part in parts)
    raise NotABlock(f"{option}={name!r} is not called there; {called or 'nothing'} is")


def _check_own(block: Call, parts: list[Call]) -> None:
    """Check that the block alone calls its parts, once: AIM hangs its adapters on them."""
    for part in parts:
        if not part.name.startswith(f"{block.name}."):
            raise NotABlock(f"it shares {part.name} with another block")
        if sum(call.module is part.module for call in block.walk()) > 1:
            raise NotABlock(f"it calls {_inside(block, part)} more than once")


def _behind(parts: list[Call], part: Call) -> list[Call]:
    return parts[_position(parts, part) + 1 :]


def _position(parts: list[Call], part: Call) -> int:
    """Return the place in a list of calls of the one that a call is, or is below."""
    return next((i for i, call in enumerate(parts) if part in call.walk()), len(parts))


def _inside(block: Call, part: Call) -> str:
    return part.name.removeprefix(f"{block.name}.")


def _is_attention(part: Call) -> bool:
    return mixes(part.module) and _is_called_attention(part) and not _holds_attention(part)


def _is_called_attention(part: Call) -> bool:
    name = f"{part.name.rpartition('.')[2]} {type(part.module).__name__}".lower()
    return "attn" in name or "attention" in name


def _holds_attention(part: Call) -> bool:
    """Whether a part is a block of its own, with a norm and attention."""
    inside = part.parts
    return any(is_norm(c.module) for c in inside) and any(mixes(c.module) and _is_called_attention(c) for c in inside)
