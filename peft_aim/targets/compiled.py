"""Replaces modules in a model of which parts may be compiled."""

from __future__ import annotations

from torch import nn


def put_into(parent: nn.Module, name: str, module: nn.Module) -> None:
    """Replace a child of a module; one that was compiled by itself is compiled anew, with its adapters."""
    setattr(parent, name, module)
    if "_orig_mod" in parent._modules:
        parent._initialize()  # its forward is bound to the child that it had
