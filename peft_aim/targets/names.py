"""The names of modules in a model without its adapters."""

from __future__ import annotations

from torch import nn


def own_names(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of a model, without itself, by the names that they have without adapters.

    Of a compiled module, only what it compiles is named.
    """
    named = [(name, module) for name, module in model.named_modules() if "_orig_mod" not in module._modules]
    return [(name.replace("base_layer.", ""), module) for name, module in named if name]
