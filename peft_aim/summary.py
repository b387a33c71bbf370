"""Describes an adapted model: which blocks have which adapters, their temporal branches, and which are skipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from peft_aim.backbone import Anatomy, Inspection, listed, within
from peft_aim.layers import AIMHead, AIMLayer, AIMNorm, TemporalAttention

ADAPTERS = {
    "temporal_in": "temporal (before attention)",
    "temporal": "temporal",
    "spatial": "spatial",
    "joint": "joint",
}
INSIDE = {"temporal embedding": "aim_temporal_inner_embedding", "temporal convolution": "aim_temporal_conv"}

ASKED = "a convolution over time is possible: name them in target_modules, with temporal='auto'"


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
        over_time: The temporal branch, "none" if there is none.
        sequence_first: Whether its tokens are (N, B, D).
    """

    first: str
    last: str
    count: int
    width: int
    bottleneck: int | None
    adapters: str
    parts: str
    over_time: str
    sequence_first: bool


def summary(model: nn.Module, adapter_name: str) -> str:
    """Return tables of the blocks and parameters of an adapter, and the blocks that are skipped.

    Args:
        model: The adapted backbone, as returned by ``PeftModel.get_base_model()``.
        adapter_name: The adapter.
    """
    found: Inspection = model.aim_clips.inspection
    own = {name: m for name, m in model.named_modules() if isinstance(m, AIMLayer)}
    layers = {name: model.get_submodule(name) for name in found.modules if name in {*found.blocks, *own}}
    embeddings = _embeddings(model, adapter_name)
    lines = {name: _line(name, layer, found, adapter_name, layer in embeddings) for name, layer in layers.items()}
    for first, second in found.pairs.items():
        if second in lines:
            lines[first] = _joined(lines[first], lines.pop(second))
    adapted = {name for name, line in lines.items() if line.bottleneck}
    skipped = {name: reason for name, reason in found.left_out.items() if name not in adapted}
    others = {name: reason for name, reason in found.without_attention.items() if not within(f"{name}.", adapted)}
    others |= dict.fromkeys(others.keys() & found.modules.keys(), ASKED)
    convolved = {name: reason for name, reason in found.left_out.items() if name in adapted}
    rows = _rows(lines.values())
    parts = [
        f"{type(model).__name__} with the adapter {adapter_name!r}: {_count(adapted, found)} are adapted",
        _table(
            ["block", "parts", "width", "bottleneck", "adapters", "temporal branch"],
            [
                [_span(line), line.parts, line.width, line.bottleneck or "-", line.adapters or "none", line.over_time]
                for line in rows
            ],
        ),
        _table(["parameters", "count", "each", "total"], _counts(model, layers, embeddings, adapter_name)),
    ]
    if turned := [_span(line) for line in rows if line.sequence_first]:
        parts.insert(2, f"Tokens with the sequence first, (N, B, D), in {', '.join(turned)}")
    if convolved:
        parts.append(f"Without temporal attention:{listed(convolved)}")
    if skipped:
        parts.append(f"Skipped:{listed(skipped)}")
    if others:
        parts.append(f"Without attention:{listed(others)}")
    return "\n\n".join(parts)


def _count(adapted: set[str], found: Inspection) -> str:
    with_attention = {*found.blocks, *found.left_out}
    others = len(adapted - with_attention)
    if not with_attention:
        return f"{others} of {len({*found.all_blocks, *found.without_adapters, *adapted})} blocks without attention"
    count = f"{len(adapted & with_attention)} of {len(with_attention)} blocks with attention"
    return f"{count}, and {others} without," if others else count


def _embeddings(model: nn.Module, adapter: str) -> dict[nn.Module, nn.Module]:
    """Return the temporal embeddings before the first block, by the module that adds them."""
    held = {module: getattr(module, "aim_temporal_embedding", {}) for module in model.modules()}
    return {module: embeddings[adapter] for module, embeddings in held.items() if adapter in embeddings}


def _line(name: str, layer: nn.Module, found: Inspection, adapter: str, is_embedded: bool) -> Line:
    anatomy = found.modules[name]
    has = [text for branch, text in ADAPTERS.items() if _has(layer, branch, adapter)]
    bottleneck = next((_down(layer, b, adapter).out_features for b in ADAPTERS if _has(layer, b, adapter)), None)
    if is_embedded:
        has.insert(0, "temporal embedding")
    over_time = layer.aim_settings[adapter].temporal if _has(layer, "temporal", adapter) else "none"
    if isinstance(over_time, TemporalAttention):
        has += [text for text, container in INSIDE.items() if adapter in getattr(layer, container)]
    adapters, parts, turned = ", ".join(has), _parts(anatomy) or "-", anatomy.tokens.batch == 1
    return Line(name, name, 1, anatomy.width, bottleneck, adapters, parts, str(over_time), turned)


def _joined(first: Line, second: Line) -> Line:
    """Return one line for the two halves of a block; siblings are told apart by the ends of their names."""
    parent, _, last = second.first.rpartition(".")
    name = f"{first.first} + {last if first.first.rpartition('.')[0] == parent else second.first}"
    both = {
        "adapters": ", ".join(filter(None, (first.adapters, second.adapters))),
        "parts": f"{first.parts}; {second.parts}",
        "bottleneck": first.bottleneck or second.bottleneck,
    }
    return replace(first, first=name, last=name, **both)


def _parts(anatomy: Anatomy) -> str:
    """Return the names of a block's parts, in the order in which they run; a module may be a part itself."""
    mlp = [anatomy.mlp] if anatomy.mlp == anatomy.mlp_end else [anatomy.mlp, anatomy.mlp_end]
    branches = ([anatomy.norm1, anatomy.attention], [anatomy.norm2, *mlp])
    if not anatomy.norm_first:
        branches = ([anatomy.attention, anatomy.norm1], [*mlp, anatomy.norm2])
    named = [[name or "itself" for name in names if name is not None] for names in branches]
    if anatomy.norm_outside is not None:
        named[anatomy.is_mlp_half].insert(0, "(norm outside)")
    return "; ".join(" ".join(names) for names in named if names)


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
    model: nn.Module, layers: dict[str, nn.Module], embeddings: dict[nn.Module, nn.Module], adapter: str
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
    sizes["temporal embedding"] = [_size(embedding) for embedding in found]
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
