"""The base class of AIM's tuner layers: one active adapter, no merging, access to the wrapped module's attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peft_aim.config import AIMConfig
from peft_aim.tracing import computing_weight, runs_on

WHY_NO_MERGE = (
    "AIM adapters cannot be merged: they are nonlinear, and the temporal one runs the attention a second time, so no "
    "change of the backbone's weights can replace them. Keep the adapter separate, or remove it with unload()."
)
WHY_NO_SUM = (
    "AIM adapters cannot be combined by add_weighted_adapter: they are nonlinear, so the weighted sum of weights does "
    "not compute the weighted sum of results. Train one adapter on all of the data, or average the scores of several: "
    "model.set_adapter(name), then the model, for each."
)


def is_decayed(name: str) -> bool:
    """Whether weight decay applies to a parameter with several axes, judging by its name: not to temporal parts.

    Example:
        >>> is_decayed("blocks.0.aim_joint_up.default.weight"), is_decayed("blocks.0.aim_temporal_conv.default.weight")
        (True, False)
    """
    return re.search(r"\baim_temporal_\w*(embedding|conv)\.", name) is None


class AIMTunerLayer(nn.Module, BaseTunerLayer):
    """A module of the backbone, with the weights that adapters add to it.

    Subclasses list the containers of weights in ``adapter_layer_names``, and create the weights of a new adapter in
    :meth:`new_weights`. Containers map adapter names to modules directly: PEFT finds an adapter's name in a key only
    at this level, and what shards or offloads a model has a module's weights available only while it is called.

    Args:
        base_layer: The module to wrap.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.training = base_layer.training
        self.merged_adapters: list[str] = []
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict().train(self.training))

    @property
    def adapters(self) -> Mapping[str, Any]:
        """The adapters of this layer, by name."""
        return getattr(self, self.adapter_layer_names[0])

    @property
    def current(self) -> str | None:
        """Name of the active adapter, None if it is not in this layer or if adapters are disabled."""
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in self.adapters), None)

    def new_weights(self, config: AIMConfig, branches: list[str]) -> dict[str, nn.Module]:
        """Create the weights of a new adapter, by container.

        Args:
            config: The adapter's options.
            branches: What the adapter adds here: "temporal_embedding", "temporal", "spatial", "joint", "norm"
                or "head".
        """
        raise NotImplementedError

    def configure(self, adapter_name: str, config: AIMConfig) -> None:
        """Apply the options of an adapter that are not weights."""

    def update_layer(self, adapter_name: str, config: AIMConfig, branches: list[str], like: Tensor) -> None:
        """Add a new adapter.

        Args:
            adapter_name: Its name.
            config: Its options.
            branches: See :meth:`new_weights`.
            like: A tensor with the device and dtype of the adapter's weights, used if the wrapped module has no
                floating-point weights.
        """
        for container, weights in self.new_weights(config, branches).items():
            getattr(self, container)[adapter_name] = weights
            getattr(self, container).train(self.training)
        self.configure(adapter_name, config)
        self._move(adapter_name, self._own_weight(like))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter.

        Raises:
            ValueError: If several are given, since each may have its own number of frames and head.
        """
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise ValueError(f"AIM runs one adapter at a time, but got {list(adapter_names)}. Activate one of them.")
        super().set_adapter(adapter_names, inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise a ValueError: AIM adapters cannot be merged."""
        raise ValueError(WHY_NO_MERGE)

    def unmerge(self) -> None:
        """Raise a ValueError: AIM adapters are never merged."""
        raise ValueError(WHY_NO_MERGE)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Accept state dicts saved when embeddings were parameters of their container."""
        for container in self.adapter_layer_names:
            for adapter_name in getattr(self, container):
                old = f"{prefix}{container}.{adapter_name}"
                if old in state_dict:
                    state_dict[f"{old}.weight"] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def detach(self) -> None:
        """Remove the hooks that the layer has registered on other modules."""

    def _own_weight(self, otherwise: Tensor | None = None) -> Tensor | None:
        found = computing_weight(self.base_layer)
        return otherwise if found is None else found

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to the wrapped module's device and dtype; PEFT's own method would look for a ``weight``."""
        self._move(adapter_name, self._own_weight(), device)

    def _move(self, adapter_name: str, like: Tensor | None, device: torch.device | None = None) -> None:
        if device is None and like is not None:
            device = runs_on(self.base_layer) if like.is_meta else like.device
        if like is None or device is None:
            return
        for container in (getattr(self, name) for name in self.adapter_layer_names):
            for parameter in container[adapter_name].parameters() if adapter_name in container else ():
                if parameter.device.type != "meta":
                    parameter.data = parameter.data.to(device, like.dtype)

    def __getattr__(self, name: str) -> Any:
        """Look up attributes in the wrapped module, too: parents read attributes of their blocks."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not set yet, while the layer is being copied
                raise
            return getattr(self.base_layer, name)

    def __repr__(self) -> str:
        return f"aim.{super().__repr__()}"
