"""Compares the frozen weights of an official checkpoint with a backbone's, by their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from peft_aim.backbone import Inspection, within
from peft_aim.convert.observe import relative_difference
from peft_aim.convert.official import Official

HALF_PRECISION = 0.005  # rounding to bfloat16 makes 0.0017
PARTS = ("query", "key", "value")

Pairs = dict[str, str]  # from a tensor's name in the file to that of its equal in the backbone


def check_same_size(file: Official, backbone: nn.Module, found: Inspection) -> None:
    """Check that a backbone has as many blocks as a checkpoint, of the same width.

    Raises:
        ValueError: If not.
    """
    widths = sorted({anatomy.width for anatomy in found.blocks.values()})
    if len(found.blocks) != len(file.blocks) or widths != [file.width]:
        raise ValueError(
            f"{file.source} has {len(file.blocks)} blocks of width {file.width}, but this {type(backbone).__name__} "
            f"has {len(found.blocks)} of width {', '.join(map(str, widths))}. Give the image model that the file was "
            "trained on."
        )


def pair_weights(file: Official, backbone: nn.Module, found: Inspection) -> Pairs:
    """Find the equal of each frozen tensor of a checkpoint in a backbone, up to rounding to half precision.

    Args:
        file: The checkpoint.
        backbone: The image model.
        found: What it is made of.

    Returns:
        Names in the backbone by names in the file, where the thirds of a fused projection may stand alone, as
        "backbone.blocks.0.attn.qkv.weight (query)".

    Raises:
        ValueError: If some have none, with the closest ones.
    """
    parameters = dict(backbone.named_parameters())
    behind = [*found.final_norms, *filter(None, [found.head])]
    free = {name: p for name, p in parameters.items() if not within(name, [*found.blocks, *behind])}
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
    """Check that a backbone has no weights besides those of a checkpoint in its blocks, nor before them.

    Args:
        file: The checkpoint.
        backbone: The image model.
        found: What it is made of.
        pairs: The equals that were found.
        entering: Names of the parameters that the tokens entering the first block depend on.

    Raises:
        ValueError: If it has, with their names.
    """
    taken = set(pairs.values())
    inside = [name for name, _ in backbone.named_parameters() if within(name, found.blocks)]
    further = [name for name in (*entering, *inside) if name not in taken]
    if further:
        more = f" and {len(further) - 6} more" if len(further) > 6 else ""
        raise ValueError(
            f"This {type(backbone).__name__} has weights that {file.source} knows nothing of: "
            f"{', '.join(further[:6])}{more}. Give the image model that the file was trained on, not one with further "
            "parts."
        )


def _pair(wanted: Mapping[str, Tensor], free: dict[str, nn.Parameter], fused: str = " ") -> tuple[Pairs, Pairs]:
    """Return the pairs, each parameter in one at most, and what was seen for tensors that have no equal."""
    pairs, wrong = {}, {}
    for name, tensor in _split(wanted, free, fused).items():
        equal, seen = _equal(tensor, free)
        if equal is None:
            wrong[name] = seen
        else:
            del free[equal]
            pairs[name] = equal
    return pairs, wrong


def _split(wanted: Mapping[str, Tensor], free: Mapping[str, nn.Parameter], fused: str) -> dict[str, Tensor]:
    """Split a fused projection of query, key and value where the backbone has three in its place."""
    shapes, result = {parameter.shape for parameter in free.values()}, {}
    for name, tensor in wanted.items():
        if name.startswith(fused) and tensor.shape not in shapes and len(tensor) % 3 == 0:
            result |= {f"{name} ({part})": third for part, third in zip(PARTS, tensor.chunk(3), strict=True)}
        else:
            result[name] = tensor
    return result


def _equal(tensor: Tensor, free: Mapping[str, nn.Parameter]) -> tuple[str | None, str]:
    """Return the name of a tensor's equal, None if there is none, and what was seen."""
    alike = {name: p for name, p in free.items() if p.squeeze().shape == tensor.squeeze().shape}
    differences = {name: relative_difference(tensor.squeeze(), p.squeeze()) for name, p in alike.items()}
    if not differences:
        return None, f"there is none of its shape {tuple(tensor.shape)} left"
    closest = min(differences, key=differences.__getitem__)
    difference = differences[closest]
    equal = closest if difference <= HALF_PRECISION else None  # not if it is no number
    return equal, f"the closest is {closest}, which differs by {difference:.1%}"


def _other_weights(file: Official, backbone: nn.Module, wrong: Pairs, total: int) -> str:
    lines = "".join(f"\n  {name}: {seen}" for name, seen in list(wrong.items())[:6])
    more = f"\n  ... and {len(wrong) - 6} more" if len(wrong) > 6 else ""
    if len(wrong) > total / 2:
        advice = "Load the pretrained weights that the file was trained on into the backbone first."
    else:
        advice = "Most are the same: give just the image model that the file was trained on, no relative of it."
    return (
        f"{file.source} was not trained on the weights of this {type(backbone).__name__}: {len(wrong)} of {total} "
        f"frozen tensors have no equal in it (relative root mean square of the difference).{lines}{more}\n{advice}"
    )
