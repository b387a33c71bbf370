"""What AIM's tuner layers have in common: one active adapter, no merging, and the wrapped module's attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peft_aim.config import AIMConfig

WHY_NO_MERGE = (
    "AIM adapters cannot be merged: they are nonlinear and the temporal one runs the attention once more, so no "
    "change of the backbone's weights does the same. Keep the adapter beside the backbone, or remove it by unload()."
)


class AIMTunerLayer(nn.Module, BaseTunerLayer):
    """A module of the backbone, with what each adapter has for it.

    Heirs name the containers of weights in ``adapter_layer_names``, and make those of a fresh adapter in
    :meth:`new_weights`. Containers are flat, by adapter: PEFT finds an adapter's name in a key only there.

    Args:
        base_layer: The module to wrap.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict() if name.endswith("embedding") else nn.ModuleDict())

    @property
    def adapters(self) -> Mapping[str, Any]:
        """The adapters that this layer has, by name."""
        return getattr(self, self.adapter_layer_names[0])

    @property
    def current(self) -> str | None:
        """Name of the adapter in use, None if there is none here or adapters are disabled."""
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in self.adapters), None)

    def new_weights(self, config: AIMConfig, branches: list[str]) -> dict[str, nn.Module | nn.Parameter]:
        """Make the weights of a fresh adapter, by container.

        Args:
            config: The adapter's options.
            branches: What the adapter has here, of "temporal_embedding", "temporal_in", "temporal", "spatial",
                "joint", "norm" and "head".
        """
        raise NotImplementedError

    def configure(self, adapter_name: str, config: AIMConfig) -> None:
        """Take over those options of an adapter that are no weights."""

    def update_layer(self, adapter_name: str, config: AIMConfig, branches: list[str], like: Tensor) -> None:
        """Add a fresh adapter.

        Args:
            adapter_name: Its name.
            config: Its options.
            branches: See :meth:`new_weights`.
            like: Its weights get the device and dtype of this one where the wrapped module has none.
        """
        for container, weights in self.new_weights(config, branches).items():
            getattr(self, container)[adapter_name] = weights
        self.configure(adapter_name, config)
        self._move(adapter_name, self._own_weight(like))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter.

        Raises:
            ValueError: If there are several: which clip length and head should count?
        """
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise ValueError(f"AIM runs one adapter at a time, got {list(adapter_names)}. Activate one of them.")
        super().set_adapter(adapter_names, inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise an error: see the message."""
        raise ValueError(WHY_NO_MERGE)

    def unmerge(self) -> None:
        """Raise an error: nothing can have been merged."""
        raise ValueError(WHY_NO_MERGE)

    def detach(self) -> None:
        """Remove the hooks that the layer has put on other modules."""

    def _own_weight(self, otherwise: Tensor | None = None) -> Tensor | None:
        return next((p for p in self.base_layer.parameters() if p.is_floating_point()), otherwise)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Give an adapter the device and dtype of the wrapped module, which has no ``weight`` that PEFT could ask."""
        self._move(adapter_name, self._own_weight(), device)

    def _move(self, adapter_name: str, like: Tensor | None, device: torch.device | None = None) -> None:
        if like is None or (device is None and like.device.type == "meta"):
            return
        for container in (getattr(self, name) for name in self.adapter_layer_names):
            entry = container[adapter_name] if adapter_name in container else nn.ParameterList()
            for parameter in [entry] if isinstance(entry, nn.Parameter) else entry.parameters():
                if parameter.device.type != "meta":
                    parameter.data = parameter.data.to(device or like.device, like.dtype)

    def __getattr__(self, name: str) -> Any:
        """Parents read attributes of their blocks."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not there yet: a copy is being made
                raise
            return getattr(self.base_layer, name)

    def __repr__(self) -> str:
        return f"aim.{super().__repr__()}"
