"""Temporal attention from the projections of an attention that cannot be called on frames itself.

Some attentions always add a bias that is made for one window of an image (Swin, BEiT, LeViT), pool their keys (PVT,
Twins, MViT), or require the size of an image. What they learned is in their projections, so :class:`Projected` runs
softmax attention with these. Which layers they are, and how their features are ordered, is guessed from names and
widths; :mod:`peft_aim.attention.recognize` accepts only guesses that reproduce the attention's own forward without its
spatial terms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from peft_aim.tracing import input_width, is_linear, is_norm, norm_width, output_width

NONLINEAR = (nn.GELU, nn.ReLU, nn.SiLU, nn.Hardswish)


@dataclass(frozen=True)
class Projected:
    """softmax attention with its own projections, without its spatial terms

    The attention's dropout is left out as well.

    Args:
        inner: Names of the projections: of query, key and value; of query and of key and value together; or of all
            three together.
        out: Name of the output projection.
        heads: Number of heads.
        by_head: Whether the features of a fused projection are ordered by head first, then by query, key and value.
        first: Name of a norm that the attention applies to its input (TinyViT).
        norms: Names of the norms on the query, key and possibly value of each head.
        scale: Factor on the scores, if not ``(D / heads) ** -0.5`` (CvT).
        activation: Name of the nonlinearity before the output projection (LeViT).
        log_scale: Name of the parameter with the logarithm of the factor on cosine similarities (Swin v2); None for
            dot products.
        keys_unbiased: Whether the bias of the fused projection is not applied to keys (torchvision's Swin v2).
        adds_query: Whether the query is added to the result (MViTv2).
    """  # noqa: D415

    inner: tuple[str, ...]
    out: str
    heads: int
    by_head: bool = False
    first: str | None = None
    norms: tuple[str, ...] = ()
    scale: float | None = None
    activation: str | None = None
    log_scale: str | None = None
    keys_unbiased: bool = False
    adds_query: bool = False

    def __call__(self, attention: nn.Module, x: Tensor) -> Tensor:
        """Run over time, ``(B*N, T, D) -> (B*N, T, D)``."""
        return self.mix(attention, *self.project(attention, x))

    def project(self, attention: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value of tokens ``(B*N, T, D)``, each ``(B*N, heads, T, D / heads)``."""
        part = attention.get_submodule
        if self.first is not None:
            as_images = _takes_images(part(self.first)) or _takes_images(part(self.inner[0]))
            x = _on_images(part(self.first), x) if as_images else part(self.first)(x)
        heads = self._heads(attention, x)
        normed = [part(name)(head) for name, head in zip(self.norms, heads, strict=False)]
        query, key, value = [*normed, *heads[len(normed) :]]
        if self.log_scale is not None:
            log_scale = attention.get_parameter(self.log_scale).view(1, -1, 1, 1)
            query = F.normalize(query, dim=-1) * log_scale.clamp(max=math.log(100)).exp()
            key = F.normalize(key, dim=-1)
        return query, key, value

    def mix(
        self, attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Mix the values by the scores of queries and keys, and project the result, to ``(B*N, T, D)``.

        Args:
            attention: The attention.
            query: Queries ``(B*N, heads, T, D / heads)``.
            key: Keys of T' frames.
            value: Their values.
            mask: Which keys each query attends to, ``(T, T')``; None for all.
        """
        scale = self.scale if self.log_scale is None else 1.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, scale=scale)  # (B*N, heads, T, D / heads)
        if self.adds_query:
            mixed = mixed + query
        mixed = mixed.transpose(1, 2).flatten(2)
        if self.activation is not None:
            mixed = attention.get_submodule(self.activation)(mixed)
        return _project(attrgetter(self.out)(attention), mixed)  # an attribute that may have been replaced

    def cell(self, attention: nn.Module) -> int:
        """Return the side of the cells of positions that share a key: 1, unless a strided convolution makes keys."""
        layers = [_mixer(attention.get_submodule(name)) for name in self.inner]
        return max(layer.stride[0] if _is_strided(layer) else 1 for layer in layers)

    def used_parameters(self, attention: nn.Module) -> set[int]:
        """Return the ids of the parameters that a call uses."""
        names = [*self.inner, self.out, *self.norms, *filter(None, [self.first])]
        parameters = [parameter for name in names for parameter in attention.get_submodule(name).parameters()]
        if self.log_scale is not None:
            parameters.append(attention.get_parameter(self.log_scale))
        return {id(parameter) for parameter in parameters + _separate_biases(attention)}

    def _heads(self, attention: nn.Module, x: Tensor) -> list[Tensor]:
        """Return the projections to query, key and value, each ``(B*N, heads, T, D / heads)``."""
        projected = [_project(attention.get_submodule(name), x) for name in self.inner]
        values = input_width(_mixer(attention.get_submodule(self.out)))
        keys = (sum(features.shape[-1] for features in projected) - values) // 2
        widths = {1: [keys, keys, values], 2: [keys, values], 3: [values]}[len(projected)]
        parts = [*projected[:-1], *self._split(projected[-1], widths)]
        biases = _separate_biases(attention)
        if biases:
            parts[0], parts[2] = (p + bias.view(self.heads, -1) for p, bias in zip((parts[0], parts[2]), biases))  # noqa: B905
        if self.keys_unbiased:
            bias = _mixer(attention.get_submodule(self.inner[0])).bias
            parts[1] = parts[1] - bias[keys : 2 * keys].view(self.heads, -1)
        parts = [p if p.ndim == 4 else p.unflatten(-1, (self.heads, -1)) for p in parts]
        return [p.transpose(1, 2) for p in parts]

    def _split(self, features: Tensor, widths: list[int]) -> list[Tensor]:
        """Split fused features ``(B*N, T, F)`` into parts ``(B*N, T, heads, width / heads)``."""
        if self.by_head:
            return list(features.unflatten(-1, (self.heads, -1)).split([w // self.heads for w in widths], dim=-1))
        return [part.unflatten(-1, (self.heads, -1)) for part in features.split(widths, dim=-1)]


def guesses(attention: nn.Module) -> Iterator[Projected]:
    """Iterate over the ways in which an attention may use its projections."""
    heads, linears = _number_of_heads(attention), _pointwise(attention)
    inner = _inner(linears)
    if heads is None or not inner:
        return
    width = input_width(linears[inner[0]])
    others = {name: m for name, m in linears.items() if _role(name) is None and not _is_strided(m)}
    outs = [name for name, m in others.items() if output_width(m) == width]
    units = tuple(_unit(attention, name) for name in inner)
    ends = [pair for out in reversed(outs) for pair in _ends(attention, (inner, out), (units, _unit(attention, out)))]
    log_scale = next((name for name, _ in attention.named_parameters() if name.endswith("logit_scale")), None)
    fused_bias = len(inner) == 1 and linears[inner[0]].bias is not None
    pooled = any(map(is_wide, attention.modules()))
    features = sum(output_width(linears[name]) for name in inner)  # of queries, keys and values
    for into, out in dict.fromkeys(ends):
        keys = (features - input_width(_mixer(attention.get_submodule(out)))) // 2
        options = {
            "by_head": (False, True) if len(inner) < 3 else (False,),
            "scale": dict.fromkeys((None, _own_scale(attention, keys // heads))),
            "activation": dict.fromkeys((None, _own_activation(attention))),
            "keys_unbiased": (False, True) if log_scale and fused_bias else (False,),
            "adds_query": (False, True) if pooled else (False,),
        }
        for chosen in itertools.product(*options.values()):
            yield Projected(
                into,
                out,
                heads,
                first=_first_norm(attention, width, inner[0]),
                norms=_norms_of_heads(attention, units),
                log_scale=log_scale,
                **dict(zip(options, chosen, strict=True)),
            )


Ends = tuple[tuple[str, ...], str]  # the names of the first projections, and of the last


def _ends(attention: nn.Module, *ends: Ends) -> list[Ends]:
    """Return the ends of an attention, those with more parameters first: it is rare that some can be left out."""

    def parameters(of: Ends) -> int:
        return sum(1 for name in (*of[0], of[1]) for _ in attention.get_submodule(name).parameters())

    return sorted(ends, key=parameters, reverse=True)


def is_wide(module: nn.Module) -> bool:
    """Whether a module is a convolution with a kernel larger than 1 x 1."""
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)


def _own_scale(attention: nn.Module, width: int) -> float | None:
    """Return the factor that an attention names, if it is not the usual one for keys of this width."""
    found = [getattr(module, name, None) for module in attention.modules() for name in ("scale", "scale_factor")]
    scale = next((value for value in found if isinstance(value, float)), None)
    return None if scale is None or (width > 0 and math.isclose(scale, width**-0.5)) else scale


def _own_activation(attention: nn.Module) -> str | None:
    """Return the name of a nonlinearity that is a direct child of the attention (LeViT)."""
    return next((name for name, module in attention.named_children() if isinstance(module, NONLINEAR)), None)


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
    norms = [name for name, m in attention.named_modules() if is_norm(m) and norm_width(m)]
    named = {_role(name.rpartition(".")[2]): name for name in norms if not name.startswith(units)}
    return tuple(named[role] for role in ("q", "k", "v") if role in named)


def _number_of_heads(attention: nn.Module) -> int | None:
    for module in attention.modules():
        for name in ("num_heads", "num_attention_heads", "n_heads", "heads"):
            if isinstance(getattr(module, name, None), int):
                return getattr(module, name)
    return None


def _pointwise(attention: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that act on each token, or on each cell of tokens, independently."""
    return {
        name: module
        for name, module in attention.named_modules()
        if is_linear(module)
        or (isinstance(module, nn.Conv2d) and (module.kernel_size == (1, 1) or _is_strided(module)))
    }


def _is_strided(layer: nn.Module) -> bool:
    """Whether a layer is a convolution over square cells that do not overlap (scaled attention, Twins by hand)."""
    is_conv = isinstance(layer, nn.Conv2d) and (layer.groups, layer.padding, layer.dilation) == (1, (0, 0), (1, 1))
    return is_conv and layer.kernel_size == layer.stride == (layer.stride[0],) * 2 != (1, 1)


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
        if len(_pointwise(around)) == 1:
            return ".".join(path[:depth])
    return name


def _mixer(unit: nn.Module) -> nn.Module:
    return next(iter(_pointwise(unit).values()))


def _project(unit: Any, x: Tensor) -> Tensor:
    """Apply a linear layer, or a convolution, to ``(B*N, T, D)``.

    A convolution over cells acts as it does where all tokens of a cell are equal: by the sum over its kernel.
    """
    if not isinstance(unit, nn.Module) or not _takes_images(unit):
        return unit(x)
    return F.linear(x, unit.weight.sum((2, 3)), unit.bias) if _is_strided(unit) else _on_images(unit, x)


def _takes_images(unit: nn.Module) -> bool:
    """Whether a norm or a projection takes ``(B, D, H, W)``, by its weights."""
    return any(parameter.ndim == 4 for parameter in unit.parameters())


def _on_images(unit: nn.Module, x: Tensor) -> Tensor:
    """Apply a module that takes images to ``(B*N, T, D)``, as images with one row."""
    return unit(x.mT.unsqueeze(2)).squeeze(2).mT


def _separate_biases(attention: nn.Module) -> list[nn.Parameter]:
    """Return the biases of query and value that are parameters of the attention itself (BEiT)."""
    biases = [getattr(attention, name, None) for name in ("q_bias", "v_bias")]
    return [] if any(bias is None for bias in biases) else biases
