"""Tells which modules resemble a block, and which parts attention, by their names and norms; running them decides."""

from __future__ import annotations

from collections.abc import Iterable

from peft_aim.tracing import Call, is_norm, mixes


def looks_like_a_block(call: Call) -> bool:
    """Whether a module maps tokens to tokens, and has attention, or a norm and two parts that mix features."""
    if None in (call.given, call.returned) or min(len(call.given.shape), len(call.returned.shape)) < 3:
        return False
    parts = [part for part in call.parts if mixes(part.module)]
    attention = any(is_attention(part) for part in parts)
    return attention or (len(parts) >= 2 and any(is_norm(part.module) for part in call.parts))


def has_attention(call: Call) -> bool:
    """Whether one of its parts, other than a nested block, is named attention."""
    return any(is_attention(part) for part in call.parts)


def is_attention(part: Call) -> bool:
    """Whether a part is named attention and is no nested block."""
    return mixes(part.module) and _is_called_attention(part) and not holds_attention(part)


def _is_called_attention(part: Call) -> bool:
    name = f"{part.name.rpartition('.')[2]} {type(part.module).__name__}".lower()
    return "attn" in name or "attention" in name


def holds_attention(part: Call) -> bool:
    """Whether a part is a nested block, with a norm and attention."""
    inside = part.parts
    return any(is_norm(c.module) for c in inside) and any(mixes(c.module) and _is_called_attention(c) for c in inside)


def within(name: str, others: Iterable[str]) -> bool:
    """Whether a module or parameter is part of one of the other modules, by their names.

    Example:
        >>> within("blocks.1.attn", ["blocks.1"]), within("blocks.10", ["blocks.1"])
        (True, False)
    """
    return any(name.startswith(f"{other}.") for other in others)
