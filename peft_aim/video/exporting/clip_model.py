"""An adapted model with what comes before and after it: uint8 frames in, probabilities out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from peft_aim.video.description import Description
from peft_aim.video.evaluate import scores_of
from peft_aim.video.problem_type import values_of


class ClipModel(nn.Module):
    """An adapted model that takes frames as they are decoded and resized.

    Args:
        model: The adapted model, with the adapter active.
        description: Description of the adapter.

    Shape:
        uint8 ``(B, T, H, W, 3)``, RGB, of the backbone's image size -> float32 ``(B, classes)``, see
        :func:`peft_aim.video.problem_type.values_of`
    """

    def __init__(self, model: nn.Module, description: Description) -> None:
        super().__init__()
        self.model = model
        self.problem_type = description.problem_type
        self.dtype = torch.float32
        preprocessing = description.preprocessing
        for name, values in (("pixel_mean", preprocessing.mean), ("pixel_std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Normalize frames, run the model and turn its scores into probabilities or numbers."""
        clips = (frames.permute(0, 1, 4, 2, 3).float() / 255 - self.pixel_mean) / self.pixel_std
        return values_of(scores_of(self.model(clips.to(self.dtype))).float(), self.problem_type)

    def in_half_precision(self) -> ClipModel:
        """Return a copy whose model computes in float16; what comes before and after it does not."""
        copied = copy.deepcopy(self)
        copied.model.half()
        copied.dtype = torch.float16
        return copied
