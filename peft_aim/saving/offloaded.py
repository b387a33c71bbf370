"""Backbones that accelerate has offloaded: adapters are loaded onto them as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def keeping_offload(model: nn.Module) -> Iterator[None]:
    """Let PEFT load an adapter without dispatching the backbone again, which AIM does not need.

    PEFT removes accelerate's hooks first. Weights on disk are then out of reach when the backbone is inspected, and
    remain so if anything fails. It does this for models that have a device map, so they are without one for a while.

    Args:
        model: The backbone.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> model.hf_device_map = {"": "cpu"}
        >>> with keeping_offload(model):
        ...     hasattr(model, "hf_device_map")
        False
        >>> model.hf_device_map
        {'': 'cpu'}
    """
    where = vars(model).pop("hf_device_map", None)
    try:
        yield
    finally:
        if where is not None:
            model.hf_device_map = where
