"""Rows of a batch of clips: those of some adapter are selected for a call, and the outputs joined in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_aim.tracing import map_tensors, tensors_in

Rows = list[int]


def rows_by_name(names: Sequence[str]) -> dict[str, Rows]:
    """Return the rows of each name, names in the order in which they first occur.

    Example:
        >>> rows_by_name(["signs", "words", "signs"])
        {'signs': [0, 2], 'words': [1]}
    """
    found: dict[str, Rows] = {}
    for row, name in enumerate(names):
        found.setdefault(name, []).append(row)
    return found


def select_rows(value: Any, rows: Rows, clips: int, frames: int) -> Any:
    """Select rows of an argument that has an entry per clip or per frame; one that is not a tensor stays as it is.

    Args:
        value: The argument.
        rows: The rows.
        clips: Number of clips B.
        frames: Number of frames T per clip.

    Shape:
        ``(B, *) -> (R, *)``, ``(B*T, *) -> (R*T, *)`` for R rows.

    Raises:
        ValueError: If it is a tensor of another shape.

    Example:
        >>> select_rows(torch.arange(6), [2, 0], clips=3, frames=2)
        tensor([4, 5, 0, 1])
    """
    if not isinstance(value, Tensor):
        return value
    count = value.shape[0] if value.ndim else None
    if count == clips:
        return value[rows]
    if count != clips * frames:
        raise ValueError(
            f"adapter_names needs arguments with an entry for each of the {clips} clips, or of their {clips * frames} "
            f"frames, but one has the shape {tuple(value.shape)}. Leave it out, or call the model once per adapter."
        )
    return value.unflatten(0, (clips, frames))[rows].flatten(0, 1)


def join_rows(outputs: Sequence[Any], rows: Sequence[Rows]) -> Any:
    """Join the outputs of several calls, each for some rows of a batch, in the order of the rows.

    Scores for different numbers of classes are padded with minus infinity, of which softmax and sigmoid make zero.

    Args:
        outputs: The outputs, whose tensors have an entry per row.
        rows: The rows of each.

    Raises:
        ValueError: If a tensor has no entry per row, or tensors differ in more than the number of classes.

    Example:
        >>> join_rows([torch.tensor([[1.0]]), torch.tensor([[2.0, 3.0]])], [[1], [0]])
        tensor([[2., 3.],
                [1., -inf]])
    """
    order = torch.tensor([row for some in rows for row in some]).argsort()
    parts = zip(*(tensors_in(output) for output in outputs), strict=True)
    joined = [_joined(tensors, rows)[order.to(tensors[0].device)] for tensors in parts]
    found = iter(joined)
    return map_tensors(lambda _: next(found), outputs[0])


def _joined(tensors: Sequence[Tensor], rows: Sequence[Rows]) -> Tensor:
    per_row = all(t.ndim and len(t) == len(some) for t, some in zip(tensors, rows, strict=True))
    is_scores = per_row and all(t.ndim == 2 and t.is_floating_point() for t in tensors)
    if not (is_scores or (per_row and len({t.shape[1:] for t in tensors}) == 1)):
        raise ValueError(
            f"With adapter_names, the model returned tensors {', '.join(str(tuple(t.shape)) for t in tensors)} for "
            f"{', '.join(str(len(some)) for some in rows)} clips, which are not one result per clip. Call the model "
            "once per adapter."
        )
    if is_scores:
        classes = max(t.shape[1] for t in tensors)
        tensors = [F.pad(t, (0, classes - t.shape[1]), value=-torch.inf) for t in tensors]
    return torch.cat(list(tensors))
