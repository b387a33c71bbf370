"""Finds how the attention of each block attends to earlier frames only, once an adapter needs that."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace

from torch import nn

from peft_aim.attention import Causal, find_causal
from peft_aim.backbone.inspection import Inspection
from peft_aim.tracing import traits


def note_causal(model: nn.Module, found: Inspection, names: Iterable[str]) -> dict[str, str]:
    """Set ``causal`` in the anatomy of blocks with temporal attention.

    Args:
        model: The model, with adapters or without.
        found: Its structure, which is changed.
        names: Names of blocks; those without temporal attention are ignored.

    Returns:
        Why an attention cannot be limited to earlier frames, by the name of its block.
    """
    known: dict[Hashable, Causal | str] = {}
    reasons: dict[str, str] = {}
    for name in names:
        anatomy = found.modules[name]
        if anatomy.attend is None or anatomy.causal is not None:
            continue
        block = model.get_submodule(name)
        attention = getattr(block, "base_layer", block).get_submodule(anatomy.attention)
        alike = traits(attention), anatomy.attend, anatomy.width
        if alike not in known:  # most attentions are copies of each other
            try:
                known[alike] = find_causal(anatomy.attend, attention, anatomy.width)
            except ValueError as error:
                known[alike] = str(error)
        if isinstance(known[alike], Causal):
            found.modules[name] = replace(anatomy, causal=known[alike])
        else:
            reasons[name] = known[alike]
    return reasons
