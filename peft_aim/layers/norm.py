"""AIMNorm: a norm behind the last block that an adapter has trained a copy of."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from peft_aim.config import AIMConfig
from peft_aim.layers.base import AIMTunerLayer


class AIMNorm(AIMTunerLayer):
    """A final norm of the model, replaced by the active adapter's own copy if it has one.

    Args:
        norm: The norm.
    """

    adapter_layer_names = ("aim_norm",)

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(norm)
        self.aim_norm = nn.ModuleDict()

    @property
    def adapters(self) -> Mapping[str, nn.Module]:
        """The adapters that have a norm of their own."""
        return self.aim_norm

    def update_layer(self, adapter_name: str, config: AIMConfig) -> None:
        """Add a copy of the norm for an adapter."""
        self.aim_norm[adapter_name] = copy.deepcopy(self.base_layer)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Normalize; the arguments are the norm's own."""
        adapter = self.current
        norm = self.base_layer if adapter is None else self.aim_norm[adapter]
        return norm(*args, **kwargs)
