"""Compares the frozen weights of an official checkpoint with those of a backbone, by their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from peft_aim.backbone import Inspection, within
from peft_aim.convert.observe import relative_difference
from peft_aim.convert.official import Official

HALF_PRECISION = 0.005  # rounding to bfloat16 causes a difference of 0.0017
PARTS = ("query", "key", "value")

Pairs = dict[str, str]  # from a tensor's name in the file to that of the equal tensor in the backbone


def check_same_size(file: Official, backbone: nn.Module, found: Inspection) -> None:
    """Check that a backbone and a checkpoint have the same number of blocks, and the same width.

    Raises:
        ValueError: If they do not.
    """
    widths = sorted({anatomy.width for anatomy in found.blocks.values()})
    if len(found.blocks) != len(file.blocks) or widths != [file.width]:
        raise ValueError(
            f"{file.source} has {len(file.blocks)} blocks of width {file.width}, but this {type(backbone).__name__} "
            f"has {len(found.blocks)} of width {', '.join(map(str, widths))}. Give the image model that the "
            "checkpoint was trained on."
        )


def pair_weights(file: Official, backbone: nn.Module, found: Inspection) -> Pairs:
    """Find, for each frozen tensor of a checkpoint, the equal tensor in a backbone, up to half-precision rounding.

    Args:
        file: The checkpoint.
        backbone: The backbone.
        found: Its structure.

    Returns:
        Names in the backbone by names in the file. The thirds of a fused projection may be listed separately, as
        "backbone.blocks.0.attn.qkv.weight (query)".

    Raises:
        ValueError: If some tensors have no match, with the closest ones.
    """
    parameters = dict(backbone.named_parameters())
    after = [*found.final_norms, *filter(None, [found.head])]
    free = {name: p for name, p in parameters.items() if not within(name, [*found.blocks, *after])}
    pairs, wrong = _pair({file.name_of(None, name): t for name, t in file.outside.items()}, free)
    for i, (block, weights) in enumerate(zip(found.blocks, file.blocks, strict=True)):
        free = {name: p for name, p in parameters.items() if within(name, [block])}
        named = {file.name_of(i, name): tensor for name, tensor in weights.items()}
        more_pairs, more_wrong = _pair(named, free, fused=file.name_of(i, file.layout.qkv))
        pairs |= more_pairs
        wrong |= more_wrong
    if wrong:
        raise ValueError(_other_weights(file, backbone, wrong, len(pairs) + len(wrong)))
    return pairs


def check_nothing_else(
    file: Official, backbone: nn.Module, found: Inspection, pairs: Pairs, entering: Iterable[str]
) -> None:
    """Check that a backbone has no weights in or before its blocks other than those of a checkpoint.

    Args:
        file: The checkpoint.
        backbone: The backbone.
        found: Its structure.
        pairs: The pairs of equal tensors.
        entering: Names of the parameters that the tokens entering the first block depend on.

    Raises:
        ValueError: If it has such weights, with their names.
    """
    taken = set(pairs.values())
    inside = [name for name, _ in backbone.named_parameters() if within(name, found.blocks)]
    others = [name for name in (*entering, *inside) if name not in taken]
    if others:
        more = f" and {len(others) - 6} more" if len(others) > 6 else ""
        raise ValueError(
            f"This {type(backbone).__name__} has weights that {file.source} does not have: "
            f"{', '.join(others[:6])}{more}. Give the image model that the checkpoint was trained on, without "
            "additional parts."
        )


def _pair(wanted: Mapping[str, Tensor], free: dict[str, nn.Parameter], fused: str = " ") -> tuple[Pairs, Pairs]:
    """Return the pairs, each parameter in at most one, and what was observed for tensors that have no match."""
    pairs, wrong = {}, {}
    for name, tensor in _split(wanted, free, fused).items():
        equal, observed = _equal(tensor, free)
        if equal is None:
            wrong[name] = observed
        else:
            del free[equal]
            pairs[name] = equal
    return pairs, wrong


def _split(wanted: Mapping[str, Tensor], free: Mapping[str, nn.Parameter], fused: str) -> dict[str, Tensor]:
    """Split a fused projection of query, key and value if the backbone has three separate ones."""
    shapes, result = {parameter.shape for parameter in free.values()}, {}
    for name, tensor in wanted.items():
        if name.startswith(fused) and tensor.shape not in shapes and len(tensor) % 3 == 0:
            result |= {f"{name} ({part})": third for part, third in zip(PARTS, tensor.chunk(3), strict=True)}
        else:
            result[name] = tensor
    return result


def _equal(tensor: Tensor, free: Mapping[str, nn.Parameter]) -> tuple[str | None, str]:
    """Return the name of the equal of a tensor, None if there is none, and what was observed."""
    alike = {name: p for name, p in free.items() if p.squeeze().shape == tensor.squeeze().shape}
    differences = {name: relative_difference(tensor.squeeze(), p.squeeze()) for name, p in alike.items()}
    if not differences:
        return None, f"no tensor of its shape {tuple(tensor.shape)} is left"
    closest = min(differences, key=differences.__getitem__)
    difference = differences[closest]
    equal = closest if difference <= HALF_PRECISION else None  # None for NaN
    return equal, f"the closest is {closest}, which differs by {difference:.1%}"


def _other_weights(file: Official, backbone: nn.Module, wrong: Pairs, total: int) -> str:
    lines = "".join(f"\n  {name}: {observed}" for name, observed in list(wrong.items())[:6])
    more = f"\n  ... and {len(wrong) - 6} more" if len(wrong) > 6 else ""
    if len(wrong) > total / 2:
        advice = "Load the pretrained weights that the checkpoint was trained on into the backbone first."
    else:
        advice = "Most are equal: give exactly the image model that the checkpoint was trained on, not a variant."
    return (
        f"{file.source} was not trained on the weights of this {type(backbone).__name__}: {len(wrong)} of {total} "
        f"frozen tensors have no match in it (differences are relative root mean squares).{lines}{more}\n{advice}"
    )
