"""The names of modules in a model without its adapters."""

from __future__ import annotations

from torch import nn


def own_names(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of a model, without itself, by the names that they have without adapters."""
    return [(name.replace("base_layer.", ""), module) for name, module in model.named_modules() if name]
