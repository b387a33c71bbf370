"""Temporal attention from the projections of an attention that cannot be called on frames itself.

Some attentions always add a bias that is made for one window of an image (Swin, BEiT, LeViT), pool their keys (PVT,
Twins, MViT), or require the size of an image. What they learned is in their projections, so :class:`Projected` runs
softmax attention with these. Which layers they are is guessed in :mod:`peft_aim.attention.guesses`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from peft_aim.tracing import input_width, is_linear


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
        before_out: Name of the nonlinearity (LeViT) or the norm (EVA-02) before the output projection.
        log_scale: Name of the parameter with the logarithm of the factor on cosine similarities (Swin v2); None for
            dot products.
        keys_unbiased: Whether the bias of the fused projection is not applied to keys (torchvision's Swin v2).
        adds_query: Whether the query is added to the result (MViTv2).
        by_channel: Whether the results of the heads are ordered by channel first, then by head (NesT).
        between_heads: Names of the layers that mix the scores of the heads before and after the softmax (CaiT).
    """  # noqa: D415

    inner: tuple[str, ...]
    out: str
    heads: int
    by_head: bool = False
    first: str | None = None
    norms: tuple[str, ...] = ()
    scale: float | None = None
    before_out: str | None = None
    log_scale: str | None = None
    keys_unbiased: bool = False
    adds_query: bool = False
    by_channel: bool = False
    between_heads: tuple[str, ...] = ()

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
        mixed = self._attend(attention, query, key, value, mask)  # (B*N, heads, T, D / heads)
        if self.adds_query:
            mixed = mixed + query
        mixed = (mixed.permute(0, 2, 3, 1) if self.by_channel else mixed.transpose(1, 2)).flatten(2)
        if self.before_out is not None:
            mixed = attention.get_submodule(self.before_out)(mixed)
        return _project(attrgetter(self.out)(attention), mixed)  # an attribute that may have been replaced

    def _attend(self, attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scale = self.scale if self.log_scale is None else 1.0
        if not self.between_heads:
            return F.scaled_dot_product_attention(query, key, value, mask, scale=scale)
        before, after = map(attention.get_submodule, self.between_heads)
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)  # (B*N, heads, T, T')
        scores = before(scores.movedim(1, -1)).movedim(-1, 1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = after(scores.softmax(-1).movedim(1, -1)).movedim(-1, 1)
        if mask is not None:  # the layer may have a bias
            weights = weights.masked_fill(~mask, 0.0)
        return weights @ value

    def cell(self, attention: nn.Module) -> int:
        """Return the side of the cells of positions that share a key: 1, unless a strided convolution makes keys."""
        layers = [mixer(attention.get_submodule(name)) for name in self.inner]
        return max(layer.stride[0] if is_strided(layer) else 1 for layer in layers)

    def used_parameters(self, attention: nn.Module) -> set[int]:
        """Return the ids of the parameters that a call uses."""
        names = [*self.inner, self.out, *self.norms, *self.between_heads, *filter(None, [self.first, self.before_out])]
        parameters = [parameter for name in names for parameter in attention.get_submodule(name).parameters()]
        if self.log_scale is not None:
            parameters.append(attention.get_parameter(self.log_scale))
        return {id(parameter) for parameter in parameters + _separate_biases(attention)}

    def _heads(self, attention: nn.Module, x: Tensor) -> list[Tensor]:
        """Return the projections to query, key and value, each ``(B*N, heads, T, D / heads)``."""
        projected = [_project(attention.get_submodule(name), x) for name in self.inner]
        values = input_width(mixer(attention.get_submodule(self.out)))
        keys = (sum(features.shape[-1] for features in projected) - values) // 2
        widths = {1: [keys, keys, values], 2: [keys, values], 3: [values]}[len(projected)]
        parts = [*projected[:-1], *self._split(projected[-1], widths)]
        biases = _separate_biases(attention)
        if biases:
            parts[0], parts[2] = (p + bias.view(self.heads, -1) for p, bias in zip((parts[0], parts[2]), biases))  # noqa: B905
        if self.keys_unbiased:
            bias = mixer(attention.get_submodule(self.inner[0])).bias
            parts[1] = parts[1] - bias[keys : 2 * keys].view(self.heads, -1)
        parts = [p if p.ndim == 4 else p.unflatten(-1, (self.heads, -1)) for p in parts]
        return [p.transpose(1, 2) for p in parts]

    def _split(self, features: Tensor, widths: list[int]) -> list[Tensor]:
        """Split fused features ``(B*N, T, F)`` into parts ``(B*N, T, heads, width / heads)``."""
        if self.by_head:
            return list(features.unflatten(-1, (self.heads, -1)).split([w // self.heads for w in widths], dim=-1))
        return [part.unflatten(-1, (self.heads, -1)) for part in features.split(widths, dim=-1)]


def pointwise(attention: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that act on each token, or on each cell of tokens, independently."""
    return {
        name: module
        for name, module in attention.named_modules()
        if is_linear(module)
        or (isinstance(module, nn.Conv2d) and (module.kernel_size == (1, 1) or is_strided(module)))
    }


def is_strided(layer: nn.Module) -> bool:
    """Whether a layer is a convolution over square cells that do not overlap (scaled attention, Twins by hand)."""
    is_conv = isinstance(layer, nn.Conv2d) and (layer.groups, layer.padding, layer.dilation) == (1, (0, 0), (1, 1))
    return is_conv and layer.kernel_size == layer.stride == (layer.stride[0],) * 2 != (1, 1)


def is_wide(module: nn.Module) -> bool:
    """Whether a module is a convolution with a kernel larger than 1 x 1."""
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)


def mixer(unit: nn.Module) -> nn.Module:
    """Return the layer of a projection, which may be followed by a norm."""
    return next(iter(pointwise(unit).values()))


def _project(unit: Any, x: Tensor) -> Tensor:
    """Apply a linear layer, or a convolution, to ``(B*N, T, D)``.

    A convolution over cells acts as it does where all tokens of a cell are equal: by the sum over its kernel.
    """
    if not isinstance(unit, nn.Module) or not _takes_images(unit):
        return unit(x)
    return F.linear(x, unit.weight.sum((2, 3)), unit.bias) if is_strided(unit) else _on_images(unit, x)


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
