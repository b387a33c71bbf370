"""Guesses how an attention uses its projections, from the names and widths of its layers.

:mod:`peft_aim.attention.recognize` and :mod:`peft_aim.attention.causal` accept only guesses that reproduce what the
attention's own forward computes, without its spatial terms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from torch import nn

from peft_aim.attention.projected import Projected, is_strided, is_wide, mixer, pointwise
from peft_aim.tracing import input_width, is_linear, is_norm, norm_width, output_width

NONLINEAR = (nn.GELU, nn.ReLU, nn.SiLU, nn.Hardswish)


def guesses(attention: nn.Module) -> Iterator[Projected]:
    """Iterate over the ways in which an attention may use its projections."""
    heads, linears = _number_of_heads(attention), pointwise(attention)
    inner = _inner(linears)
    if heads is None or not inner:
        return
    width = input_width(linears[inner[0]])
    others = {name: m for name, m in linears.items() if _role(name) is None and not is_strided(m)}
    outs = [name for name, m in others.items() if output_width(m) == width]
    units = tuple(_unit(attention, name) for name in inner)
    ends = [pair for out in reversed(outs) for pair in _ends(attention, (inner, out), (units, _unit(attention, out)))]
    log_scale = next((name for name, _ in attention.named_parameters() if name.endswith("logit_scale")), None)
    fused_bias = len(inner) == 1 and linears[inner[0]].bias is not None
    pooled = any(map(is_wide, attention.modules()))
    features = sum(output_width(linears[name]) for name in inner)  # of queries, keys and values
    norms = _norms_of_heads(attention, units)
    for into, out in dict.fromkeys(ends):
        values = input_width(mixer(attention.get_submodule(out)))
        keys, first = (features - values) // 2, _first_norm(attention, width, inner[0])
        options = {
            "by_channel": (False, True) if heads > 1 else (False,),  # rare, so the last to change
            "between_heads": dict.fromkeys(((), _between_heads(others, heads))),
            "by_head": (False, True) if len(inner) < 3 else (False,),
            "scale": dict.fromkeys((None, _own_scale(attention, keys // heads), 1.0 if norms else None)),
            "before_out": dict.fromkeys((None, _own_activation(attention), _norm_of_values(attention, values, first))),
            "keys_unbiased": (False, True) if log_scale and fused_bias else (False,),
            "adds_query": (False, True) if pooled else (False,),
        }
        for chosen in itertools.product(*options.values()):
            yield Projected(
                into,
                out,
                heads,
                first=first,
                norms=norms,
                log_scale=log_scale,
                **dict(zip(options, chosen, strict=True)),
            )


Ends = tuple[tuple[str, ...], str]  # the names of the first projections, and of the last


def _ends(attention: nn.Module, *ends: Ends) -> list[Ends]:
    """Return the ends of an attention, those with more parameters first: it is rare that some can be left out."""

    def parameters(of: Ends) -> int:
        return sum(1 for name in (*of[0], of[1]) for _ in attention.get_submodule(name).parameters())

    return sorted(ends, key=parameters, reverse=True)


def _own_scale(attention: nn.Module, width: int) -> float | None:
    """Return the factor that an attention names, if it is not the usual one for keys of this width."""
    found = [getattr(module, name, None) for module in attention.modules() for name in ("scale", "scale_factor")]
    scale = next((value for value in found if isinstance(value, float)), None)
    return None if scale is None or (width > 0 and math.isclose(scale, width**-0.5)) else scale


def _own_activation(attention: nn.Module) -> str | None:
    """Return the name of a nonlinearity that is a direct child of the attention (LeViT)."""
    return next((name for name, module in attention.named_children() if isinstance(module, NONLINEAR)), None)


def _norm_of_values(attention: nn.Module, width: int, first: str | None) -> str | None:
    """Return the name of a norm that may be applied to the results of all heads (EVA-02)."""
    norms = [name for name, m in attention.named_children() if is_norm(m) and norm_width(m) == width and name != first]
    return next((name for name in norms if _role(name) is None), None)


def _first_norm(attention: nn.Module, width: int, inner: str) -> str | None:
    """Return the name of a norm over all channels before the first projection (TinyViT)."""
    for name, module in attention.named_children():
        if inner == name or inner.startswith(f"{name}."):
            return None
        if is_norm(module) and norm_width(module) == width:
            return name
    return None


def _norms_of_heads(attention: nn.Module, units: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the norms on query, key and possibly value, in this order."""
    norms = [name for name, m in attention.named_modules() if is_norm(m)]
    named = {_role(name.rpartition(".")[2]): name for name in norms if not name.startswith(units)}
    return tuple(named[role] for role in ("q", "k", "v") if role in named)


def _between_heads(linears: dict[str, nn.Module], heads: int) -> tuple[str, ...]:
    """Return the names of the two layers from heads to heads, if there are two (CaiT)."""
    found = tuple(name for name, m in linears.items() if is_linear(m) and input_width(m) == output_width(m) == heads)
    return found if len(found) == 2 else ()


def _number_of_heads(attention: nn.Module) -> int | None:
    for module in attention.modules():
        for name in ("num_heads", "num_attention_heads", "n_heads", "heads"):
            if isinstance(getattr(module, name, None), int):
                return getattr(module, name)
    return None


def _inner(linears: dict[str, nn.Module]) -> tuple[str, ...]:
    """Return the names of the layers that project to query, key and value, if they can be read from their names."""
    by_role = {_role(name): name for name in linears}
    for wanted in (("qkv",), ("q", "kv"), ("q", "k", "v")):
        if all(role in by_role for role in wanted):
            return tuple(by_role[role] for role in wanted)
    return ()


def _role(name: str) -> str | None:
    """Return "q", "k", "v", "kv" or "qkv" if it can be read from a name.

    Example:
        >>> [_role(name) for name in ("attention.query", "queries_keys_values.linear", "to_kv", "v_proj", "proj")]
        ['q', 'qkv', 'kv', 'v', None]
    """
    for piece in reversed(name.lower().split(".")):
        words = piece.split("_")
        found = [word for word in words if word in ("q", "k", "v", "kv", "qkv")]
        found += [letter for letter, stem in (("q", "quer"), ("k", "key"), ("v", "value")) if stem in piece]
        if found:
            return "".join(found)
    return None


def _unit(attention: nn.Module, name: str) -> str:
    """Return the name of the outermost module in the attention that contains this layer and no other projection."""
    path = name.split(".")
    for depth in range(1, len(path)):
        around = attention.get_submodule(".".join(path[:depth]))
        if len(pointwise(around)) == 1:
            return ".".join(path[:depth])
    return name
