"""AIMNorm: a norm after the last block, of which adapters train their own copies."""

from __future__ import annotations

import copy
from typing import Any

from accelerate.hooks import remove_hook_from_module
from torch import nn

from peft_aim.config import AIMConfig
from peft_aim.layers.base import AIMTunerLayer


class AIMNorm(AIMTunerLayer):
    """A final norm of the model, replaced by the active adapter's copy if the adapter has one."""

    adapter_layer_names = ("aim_norm",)

    def new_weights(self, config: AIMConfig, branches: list[str]) -> dict[str, nn.Module]:
        """Create a copy of the norm, with its weights even if they are offloaded."""
        hook = getattr(self.base_layer, "_hf_hook", None)  # accelerate's
        if hook is None:
            return {"aim_norm": copy.deepcopy(self.base_layer)}
        twin = copy.deepcopy(self.base_layer, {id(hook): hook})
        hook.pre_forward(twin)  # loads the weights
        return {"aim_norm": remove_hook_from_module(twin)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Normalize; the arguments are the norm's own."""
        adapter = self.current
        norm = self.base_layer if adapter is None else self.aim_norm[adapter]
        return norm(*args, **kwargs)
