"""AIMHead: the classification head that an adapter brings along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from peft_aim.clips import Frames
from peft_aim.config import AIMConfig
from peft_aim.layers.adapter import initialize, same_in_all_frames
from peft_aim.layers.base import AIMTunerLayer


class AIMHead(AIMTunerLayer):
    """The model's classification head, replaced by the active adapter's own if it has one.

    Args:
        head: The model's head, or the identity in its place.
        features: Width of what it takes.
        frames: Tells how many frames the clips have that features belong to.
    """

    adapter_layer_names = ("aim_head",)
    other_param_names = ("aim_dropout",)

    def __init__(self, head: nn.Module, features: int, frames: Frames) -> None:
        super().__init__(head)
        self.features = features
        self.frames = frames
        self.aim_head = nn.ModuleDict()
        self.aim_dropout: dict[str, float] = {}

    @property
    def adapters(self) -> Mapping[str, nn.Module]:
        """The adapters that have a head of their own."""
        return self.aim_head

    def update_layer(self, adapter_name: str, config: AIMConfig, like: Tensor) -> None:
        """Add a fresh head with the adapter's number of classes, on the device and in the dtype of a tensor."""
        head = nn.Linear(self.features, config.num_labels)
        if head.weight.device.type != "meta":
            head.to(like)
        initialize(head)
        self.aim_head[adapter_name] = head
        self.configure(adapter_name, config)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def configure(self, adapter_name: str, config: AIMConfig) -> None:
        """Take over the rate of dropout."""
        self.aim_dropout[adapter_name] = config.head_dropout

    def forward(self, features: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute class scores, ``(B*T, features) -> (B*T, classes)``."""
        adapter = self.current
        if adapter is None:
            return self.base_layer(features, *args, **kwargs)
        head = self.aim_head[adapter]
        if self.training and self.aim_dropout[adapter]:
            features = same_in_all_frames(features, self.aim_dropout[adapter], self.frames.of(features))
        # A class token alone would keep all other tokens in memory until backward.
        return head(features.to(head.weight.dtype).contiguous())
