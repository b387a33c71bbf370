"""Describes an adapted model: which blocks have which adapters, how they attend over time, and which are skipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from peft_aim.attention import in_words
from peft_aim.backbone import Anatomy, Inspection, listed
from peft_aim.layers import AIMHead, AIMLayer, AIMNorm

ADAPTERS = {
    "temporal_in": "temporal (before attention)",
    "temporal": "temporal",
    "spatial": "spatial",
    "joint": "joint",
}
INSIDE = {"temporal embedding": "aim_temporal_inner_embedding", "temporal convolution": "aim_temporal_conv"}


@dataclass(frozen=True)
class Line:
    """A row of the table of blocks: one block, or several consecutive blocks that differ only in their names.

    Attributes:
        first: Name of the first block.
        last: Name of the last block.
        count: Number of blocks.
        width: Token width D.
        bottleneck: Width of the bottlenecks, None if there are none.
        adapters: Which adapters a block has, "" if none.
        parts: Names of a block's norms, attention and MLP.
        attention: The kind of temporal attention, "none" without a temporal adapter.
    """

    first: str
    last: str
    count: int
    width: int
    bottleneck: int | None
    adapters: str
    parts: str
    attention: str


def summary(model: nn.Module, adapter_name: str) -> str:
    """Return tables of the blocks and parameters of an adapter, and the blocks that are skipped.

    Args:
        model: The adapted backbone, as returned by ``PeftModel.get_base_model()``.
        adapter_name: The adapter.
    """
    found: Inspection = model.aim_clips.inspection
    layers = {name: model.get_submodule(name) for name in found.blocks}
    embeddings = _embeddings(model, found, adapter_name)
    lines = _rows(_line(name, layer, found, adapter_name, name in embeddings) for name, layer in layers.items())
    adapted = sum(line.count for line in lines if line.bottleneck)
    total = len(found.blocks) + len(found.left_out)
    parts = [
        f"{type(model).__name__} with the adapter {adapter_name!r}: {adapted} of {total} blocks with attention "
        "are adapted",
        _table(
            ["block", "parts", "width", "bottleneck", "adapters", "temporal attention"],
            [
                [_span(line), line.parts, line.width, line.bottleneck or "-", line.adapters or "none", line.attention]
                for line in lines
            ],
        ),
        _table(["parameters", "count", "each", "total"], _counts(model, layers, embeddings, adapter_name)),
    ]
    if found.left_out:
        parts.append(f"Skipped:{listed(found.left_out)}")
    if found.without_attention:
        parts.append(f"Without attention:{listed(found.without_attention)}")
    return "\n\n".join(parts)


def _embeddings(model: nn.Module, found: Inspection, adapter: str) -> dict[str, nn.Parameter]:
    """Return the temporal embeddings by block, whether the block or the norm before it adds them."""
    holders = {block: model.get_submodule(norm or block) for block, norm in found.entries.items()}
    has = {block: getattr(holder, "aim_temporal_embedding", {}) for block, holder in holders.items()}
    return {block: embeddings[adapter] for block, embeddings in has.items() if adapter in embeddings}


def _line(name: str, layer: nn.Module, found: Inspection, adapter: str, is_embedded: bool) -> Line:
    anatomy = found.blocks[name]
    has = [text for branch, text in ADAPTERS.items() if _has(layer, branch, adapter)]
    bottleneck = next((_down(layer, b, adapter).out_features for b in ADAPTERS if _has(layer, b, adapter)), None)
    if is_embedded:
        has.insert(0, "temporal embedding")
    for text, container in INSIDE.items():
        if adapter in getattr(layer, container, ()):
            has.append(text)
    attends = in_words(anatomy.attend) if _has(layer, "temporal", adapter) else "none"
    return Line(name, name, 1, anatomy.width, bottleneck, ", ".join(has), _parts(anatomy), attends)


def _parts(anatomy: Anatomy) -> str:
    """Return the names of a block's parts, in the order in which they run."""
    mlp = [anatomy.mlp] if anatomy.mlp == anatomy.mlp_end else [anatomy.mlp, anatomy.mlp_end]
    branches = ([anatomy.norm1, anatomy.attention], [anatomy.norm2, *mlp])
    if not anatomy.norm_first:
        branches = ([anatomy.attention, anatomy.norm1], [*mlp, anatomy.norm2])
    return "; ".join(" ".join(filter(None, names)) for names in branches if any(names))


def _rows(lines: Iterable[Line]) -> list[Line]:
    """Merge consecutive lines that differ only in their names."""
    rows: list[Line] = []
    for line in lines:
        alike = rows and replace(rows[-1], first=line.first, last=line.last, count=1) == line
        if alike:
            rows[-1] = replace(rows[-1], last=line.last, count=rows[-1].count + 1)
        else:
            rows.append(line)
    return rows


def _span(line: Line) -> str:
    return line.first if line.count == 1 else f"{line.first} to {line.last} ({line.count})"


def _counts(
    model: nn.Module, layers: dict[str, nn.Module], embeddings: dict[str, nn.Parameter], adapter: str
) -> list[list[object]]:
    sizes: dict[str, list[int]] = {}
    for branch, text in ADAPTERS.items():
        has = [layer for layer in layers.values() if _has(layer, branch, adapter)]
        sizes[text] = [_size(_down(m, branch, adapter)) + _size(_up(m, branch, adapter)) for m in has]
    blocks = [layer for layer in layers.values() if isinstance(layer, AIMLayer)]
    convolutions = [layer.aim_temporal_conv for layer in blocks]
    sizes["temporal convolution"] = [_size(found[adapter]) for found in convolutions if adapter in found]
    inner = [layer.aim_temporal_inner_embedding for layer in blocks]
    found = [*embeddings.values(), *(held[adapter] for held in inner if adapter in held)]
    sizes["temporal embedding"] = [embedding.numel() for embedding in found]
    for text, kind in {"final norm": AIMNorm, "head": AIMHead}.items():
        own = [m.adapters[adapter] for m in model.modules() if isinstance(m, kind) and adapter in m.adapters]
        sizes[text] = [_size(module) for module in own]
    rows = [[text, len(each), _range(each), f"{sum(each):,}"] for text, each in sizes.items() if each]
    return [*rows, ["all", "", "", f"{sum(map(sum, sizes.values())):,}"]]


def _has(layer: nn.Module, branch: str, adapter: str) -> bool:
    return isinstance(layer, AIMLayer) and layer.has(adapter, branch)


def _down(layer: AIMLayer, branch: str, adapter: str) -> nn.Linear:
    return getattr(layer, f"aim_{branch}_down")[adapter]


def _up(layer: AIMLayer, branch: str, adapter: str) -> nn.Linear:
    return getattr(layer, f"aim_{branch}_up")[adapter]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _range(sizes: list[int]) -> str:
    return f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"


def _table(head: list[str], rows: list[list[object]]) -> str:
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells)
