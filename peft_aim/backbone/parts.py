"""Finds the parts of a block (norms, attention and MLP) from how they are called.

Pre-norm branches, ``x + attention(norm(x))``, and post-norm branches, ``x + norm(attention(x))``, are supported. The
norm may be missing, or be part of the attention.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import torch
from torch import Tensor, nn

from peft_aim.attention import Kind, find_kind, find_output, random_twin
from peft_aim.backbone.anatomy import Anatomy, NotABlock, PartNames
from peft_aim.backbone.mixing import mixers
from peft_aim.backbone.resemblance import has_attention, holds_attention, is_attention
from peft_aim.tracing import (
    Call,
    Handle,
    Layout,
    acts_on_each_position,
    channel_axis,
    input_width,
    is_linear,
    is_mixer,
    is_norm,
    mixes,
    norm_width,
    traits,
)

Kinds = dict[Hashable, tuple[Kind, str | None]]


def examine(call: Call, images: int, batch: int | None, names: PartNames, kinds: Kinds) -> Anatomy:
    """Find the parts of a block from a traced call of it.

    The result is a guess; :func:`peft_aim.backbone.probes.readings` checks it by running the block.

    Args:
        call: A traced call of the block.
        images: Number of images in the traced batch.
        batch: The batch axis of the block's tokens, None if there is none.
        names: Names of parts to use instead of those found.
        kinds: The kinds of the attentions inspected so far, and their last layers, by traits; this one is added.

    Raises:
        NotABlock: If it has no such parts, with what was observed.
    """
    shape = call.given.shape
    if call.returned.shape != shape:
        raise NotABlock(
            f"it maps tokens {shape} to {call.returned.shape}, as class attention, pooling and downsampling do",
            understood=has_attention(call),
        )
    if batch is None:
        raise NotABlock(f"no axis of its tokens {shape} is the batch of {images} images")
    if not call.takes_tensor:
        raise NotABlock("its first argument is no tensor but a list or tuple of tensors")
    attention, norm1, norm_first = _attention(call, names)
    width = token_width(call, norm1, attention)
    check_attends_to_itself(attention, width, batch_axis(attention, call, batch))
    norm2, mlp, mlp_end = mlp_among(_behind(call.parts, attention if norm_first else norm1), norm_first, names)
    parts = [part for part in (norm1, attention, norm2, mlp, mlp_end) if part is not None]
    _check_own(call, parts)
    beside = [c for c in call.parts if not any(part in c.walk() for part in parts)]
    others = [c for c in beside if mixes(c.module) or is_norm(c.module)]
    first = next((c for c in call.parts[: _position(call.parts, attention)] if c in others and _is_mlp(c)), None)
    if mlp is None and first is not None:
        raise NotABlock(
            f"its {inside(call, first)} runs before its attention {inside(call, attention)}, so a temporal branch "
            "before the block would not get the tokens that its attention gets"
        )
    second = [c for c in others if is_attention(c)]
    if second and not names.attention:
        raise NotABlock(f"it calls two attentions, {inside(call, attention)} and {inside(call, second[0])}")
    mixing = None if norm1 is None else mixing_norm(call, norm1, width)
    axes = {p: -1 if p is None else channel_axis(p.module, p.given.shape, width) for p in (norm1, attention, mlp)}
    own = channel_axis(call.module, shape, width)
    if norm1 is not None:  # its axis is certain, even where D equals the height or width of the image
        own = axes[norm1] if norm1.given.shape == shape else own
        axes |= {part: axes[norm1] for part in (attention, mlp) if part and part.given.shape == norm1.given.shape}
        if axes[norm1] == 1 and len(norm1.given.shape) != len(shape):
            raise NotABlock(f"its norm is called on tokens {norm1.given.shape}, the block on {shape}")
    if None in (own, *axes.values()):
        shapes = ", ".join(str(part.given.shape) for part in (call, attention, mlp) if part)
        raise NotABlock(
            mixing
            or f"the token width of its norm or attention is {width}, but block, attention and MLP are called on "
            f"{shapes}"
        )
    layouts = {p: Layout(batch_axis(p, call, batch), axes[p]) for p in (norm1, attention, mlp)}
    known = Anatomy(
        *(part and inside(call, part) for part in (norm1, attention, norm2, mlp, mlp_end)),
        width=width,
        attend=None,
        norm_first=norm_first,
        tokens=Layout(batch, own, groups=shape[batch] // images),
        norm_tokens=layouts[norm1],
        attention_tokens=layouts[attention],
        mlp_tokens=layouts[mlp],
        others=tuple(inside(call, other) for other in others),
    )
    if mixing:
        raise NotABlock(mixing, understood=has_attention(call), known=known)
    beside = [] if names.attention else mixers(call, lambda part: part is attention, {shape: own})
    if beside:  # otherwise the user has chosen among several
        other = inside(call, beside[0]) or "its own forward"
        raise NotABlock(f"besides its attention {inside(call, attention)}, {other} mixes spatial positions")
    try:
        attend, output = kind_over_time(attention, layouts[attention], width, kinds)
    except ValueError as reason:
        raise NotABlock(str(reason), understood=has_attention(call), known=known) from reason
    return replace(known, attend=attend, output=output)


def mixing_norm(block: Call, norm: Call, width: int) -> str | None:
    """Return in words that a norm mixes spatial positions, None if it does not."""
    if acts_on_each_position(norm.module, norm.given.shape, width):
        return None
    return (
        f"its norm {inside(block, norm)}, a {type(norm.module).__name__}, normalizes over all spatial positions, so "
        "temporal attention would mix them"
    )


def batch_axis(part: Call | None, block: Call, batch: int) -> int:
    """Return the batch axis of a part's tokens: the block's, unless the part takes them transposed, or in windows."""
    if part is None or part.given.shape == block.given.shape:
        return batch
    first, second, *rest = block.given.shape
    return 1 - batch if part.given.shape == (second, first, *rest) and not rest[1:] else 0


def check_attends_to_itself(attention: Call, width: int, batch: int) -> None:
    """Check that an attention gets no tokens of its images but its own.

    Args:
        attention: Its call.
        width: Token width D.
        batch: Batch axis of its tokens.

    Raises:
        NotABlock: If it gets others, in cross-attention for example.
    """
    for name, value in attention.arguments.items():
        tokens = isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3 and not value.is_meta
        own, positions = attention.given.shape, 1 - batch
        tokens = tokens and value.shape[-1] == width and value.shape[batch] == own[batch]
        # Tokens of the two images are alike; those of a rotary embedding, per head, are not.
        others = tokens and value.shape[positions] != own[positions]
        others = others and torch.equal(value.select(batch, 0), value.select(batch, -1))
        if (others or name in ("key", "value")) and Handle.of(value) != attention.given:
            raise NotABlock(
                f"its attention also gets tokens {tuple(value.shape)} as {name}, so it attends to tokens other than "
                "its own",
                understood=True,
            )


def _attention(block: Call, names: PartNames) -> tuple[Call, Call | None, bool]:
    """Return the attention, its norm, and whether the norm comes first."""
    parts = block.parts
    norms = [part for part in parts if is_norm(part.module)]
    attention = _named(parts, names.attention, "attention_module") or next(filter(is_attention, parts), None)
    if attention is None:
        rest = _behind(parts, norms[0]) if norms else []
        rest = rest if sum(mixes(part.module) for part in rest) > 1 else parts
        attention = next((part for part in rest if mixes(part.module) and not holds_attention(part)), None)
    if attention is None or None in (attention.given, attention.returned):
        raise NotABlock("none of its parts that could be attention takes tokens as its first argument")
    if attention.given.numel != attention.returned.numel:
        raise NotABlock(
            f"its {inside(block, attention)} maps tokens {attention.given.shape} to {attention.returned.shape}, "
            "which self-attention does not",
            understood=is_attention(attention),
        )
    position = _position(parts, attention)
    norm1 = _named(parts, names.norm1, "norm1_module")
    if norm1 is not None:
        return attention, norm1, _position(parts, norm1) < position
    before = [norm for norm in norms if _position(parts, norm) < position]
    behind = [norm for norm in norms if _position(parts, norm) > position]
    if not before and len(behind) > 1:  # post-norm, unless both norms come before the MLP
        between = parts[_position(parts, behind[0]) : _position(parts, behind[1])]
        if any(mixes(part.module) for part in between):
            return attention, behind[0], False
    return attention, before[-1] if before else None, True


def mlp_among(tail: list[Call], norm_first: bool, names: PartNames) -> tuple[Call | None, Call | None, Call | None]:
    """Return the norm of the MLP, its first and its last module, among calls; None where there is none."""
    norms = [part for part in tail if is_norm(part.module)]
    mixers = [part for part in tail if mixes(part.module)]
    norm2 = _named(tail, names.norm2, "norm2_module")
    mlp = _named(tail, names.mlp, "mlp_module")
    if mlp is None and not mixers:
        return None, None, None
    if norm2 is None and norm_first:  # the last one before the MLP
        norm2 = next((n for n in reversed(norms) if _position(tail, n) < _position(tail, mlp or mixers[-1])), None)
    elif norm2 is None:  # the first one after it
        norm2 = next((n for n in norms if _position(tail, n) > _position(tail, mlp or mixers[0])), None)
    if mlp is None and norm2 is not None and norm_first:
        mlp = next(part for part in mixers if _position(tail, part) > _position(tail, norm2))
    mlp = mlp or (mixers[0] if norm2 is not None else mixers[-1])
    end = passed = mlp
    for part in _behind(tail, mlp):
        if None not in (part.given, part.returned) and part.given == passed.returned:
            passed = part
            end = part if mixes(part.module) else end
    if None not in (mlp.given, end.returned) and mlp.given.numel != end.returned.numel:  # a function in between
        later = [part for part in _behind(tail, end) if mixes(part.module) and part.returned is not None]
        end = next((part for part in later if part.returned.numel == mlp.given.numel), end)
    if None in (mlp.given, end.returned) or len(mlp.given.shape) < 3 or mlp.given.numel != end.returned.numel:
        raise NotABlock("no MLP that maps tokens to tokens of the same shape is called after its attention")
    return norm2, mlp, end


def token_width(block: Call, norm: Call | None, attention: Call) -> int:
    """Return the token width D: that of a norm, otherwise that of the first layer that the attention calls."""
    if norm is not None and norm_width(norm.module):
        return norm_width(norm.module)
    called = (part.module for part in attention.walk())
    for module in (*called, *attention.module.modules()):  # it may use the weights of a layer without calling it
        if is_mixer(module):
            return input_width(module)
    raise NotABlock(f"neither a norm nor its {inside(block, attention)} has a token width")


def kind_over_time(attention: Call, layout: Layout, width: int, kinds: Kinds) -> tuple[Kind, str | None]:
    """Return the kind of temporal attention, and the name of the linear layer at the end of the attention.

    Args:
        attention: The call of the attention.
        layout: The layout of its tokens.
        width: Token width D.
        kinds: See :func:`examine`.

    Raises:
        ValueError: If the attention cannot run over time.
    """
    alike = (traits(attention.module), layout)
    if alike not in kinds:  # most attentions are copies of each other
        kind = find_kind(attention.module, attention.given.shape, attention.arguments, layout)
        kinds[alike] = kind, find_output(kind, random_twin(attention.module), width)
    return kinds[alike]


def _named(parts: list[Call], name: str | None, option: str) -> Call | None:
    """Return the part that the user named, if any."""
    if name is None:
        return None
    for call in (call for part in parts for call in part.walk()):
        if call.name == name or call.name.endswith(f".{name}"):
            if mixes(call.module) == option.startswith("norm"):
                does = "mixes" if option.startswith("norm") else "does not mix"
                raise NotABlock(f"{option}={name!r} is a {type(call.module).__name__}, which {does} features")
            return call
    called = ", ".join(part.name.rpartition(".")[2] for part in parts)
    raise NotABlock(f"it does not call {option}={name!r}, only {called or 'nothing'}")


def _check_own(block: Call, parts: list[Call]) -> None:
    """Check that the block calls its parts once, and nobody else does: AIM puts hooks on them."""
    for part in parts:
        if not part.name.startswith(f"{block.name}."):
            raise NotABlock(f"it shares {part.name} with another block")
        if sum(call.module is part.module for call in block.walk()) > 1:
            raise NotABlock(f"it calls {inside(block, part)} more than once")


def _behind(parts: list[Call], part: Call) -> list[Call]:
    return parts[_position(parts, part) + 1 :]


def _position(parts: list[Call], part: Call) -> int:
    """Return the index, in a list of calls, of the one that a call is or is part of."""
    return next((i for i, call in enumerate(parts) if part in call.walk()), len(parts))


def _is_mlp(call: Call) -> bool:
    """Whether it may be an MLP or its first layer: it mixes the features of each position."""
    dense = any(is_linear(part.module) or getattr(part.module, "groups", 0) == 1 for part in call.walk())
    return dense and is_pointwise(call)


def is_pointwise(call: Call) -> bool:
    """Whether its convolutions act on each position or on each channel alone, as those of MLPs do."""
    layers = [part.module for part in call.walk() if isinstance(part.module, (nn.Conv1d, nn.Conv2d))]
    return all(layer.groups == layer.in_channels or {*layer.kernel_size} == {1} for layer in layers)


def no_norm(call: Call) -> str:
    """Return in words why a module that stands in the place of a norm is taken for none."""
    return (
        f"a {type(call.module).__name__}, which is not known to be a norm: it has no scale per channel, or does not "
        "limit the size of each token. If it is one, let the name of its class contain 'Norm'"
    )


def on_what(call: Call, anatomy: Anatomy) -> str:
    """Return in words on what an attention is called that gets neither the input of its block nor that of a norm."""
    attention = next(part for part in call.walk() if inside(call, part) == anatomy.attention)
    makers = [part for part in call.walk() if part.returned == attention.given and not mixes(part.module)]
    if not makers:
        return "neither on its input nor on the normalized input"
    return f"on the output of {inside(call, makers[0])}, {no_norm(makers[0])}"


def inside(block: Call, part: Call) -> str:
    """Return the name of a part inside a block, "" for the block itself."""
    return "" if part is block else part.name.removeprefix(f"{block.name}.")
