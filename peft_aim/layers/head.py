"""AIMHead: the classification head of an adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.clips import Frames
from peft_aim.config import AIMConfig
from peft_aim.layers.adapter import initialize, same_in_all_frames
from peft_aim.layers.base import AIMTunerLayer


class AIMHead(AIMTunerLayer):
    """The model's classification head, replaced by that of the active adapter if the adapter has one.

    Args:
        head: The model's head, or the identity in its place.
        features: Input width of the head.
        frames: Maps features to the number of frames of their clips.
    """

    adapter_layer_names = ("aim_head",)
    other_param_names = ("aim_dropout", "aim_problem_type")

    def __init__(self, head: nn.Module, features: int, frames: Frames) -> None:
        super().__init__(head)
        self.features = features
        self.frames = frames
        self.aim_dropout: dict[str, float] = {}
        self.aim_problem_type: dict[str, str | None] = {}

    def new_weights(self, config: AIMConfig, branches: list[str]) -> dict[str, nn.Module]:
        """Create a head with the adapter's number of classes."""
        head = nn.Linear(self.features, config.num_labels)
        initialize(head)
        return {"aim_head": head}

    def configure(self, adapter_name: str, config: AIMConfig) -> None:
        """Apply the dropout rate and the problem type."""
        self.aim_dropout[adapter_name] = config.head_dropout
        self.aim_problem_type[adapter_name] = config.problem_type

    @property
    def problem_type(self) -> str | None:
        """What labels mean for the active adapter, None if it leaves that to the model."""
        return self.aim_problem_type.get(self.current)

    def forward(self, features: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute class scores, ``(B*T, features) -> (B*T, classes)``."""
        adapter = self.current
        if adapter is None:
            return self.base_layer(features, *args, **kwargs)
        head = self.aim_head[adapter]
        if self.training and self.aim_dropout[adapter]:
            features = same_in_all_frames(features, self.aim_dropout[adapter], self.frames.of(features).frames)
        # A view of the class token would keep all other tokens in memory until backward.
        features = features.to(head.weight.dtype).contiguous()
        kind = features.device.type
        if self.aim_problem_type[adapter] == "regression" and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):  # in bfloat16, 2001 would be 2000
                return head(features)
        return head(features)
