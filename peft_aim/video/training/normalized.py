"""Numbers as a model is trained on them: with mean 0 and standard deviation 1, whatever their units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from peft_aim.layers import AIMHead
from peft_aim.video.data import Sample


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of the numbers that training videos are labeled with, ``(C,)`` each.

    A head that is trained on normalized numbers predicts those in their own units once mean and standard deviation are
    folded into its weights, so that nothing has to be known about them later.

    Example:
        >>> from pathlib import Path
        >>> numbers = Normalization.of([Sample(Path("a.mp4"), (10.0,)), Sample(Path("b.mp4"), (14.0,))], ["length"])
        >>> numbers.normalized(torch.tensor([[12.0], [14.0]])).tolist()
        [[0.0], [1.0]]
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, videos: Sequence[Sample], classes: Sequence[str]) -> Normalization:
        """Compute mean and standard deviation of the labels of videos.

        Args:
            videos: The training videos.
            classes: What the numbers are called.

        Raises:
            ValueError: If all videos have the same number.
        """
        numbers = np.array([video.label for video in videos], dtype=np.float64)
        for name, values in zip(classes, numbers.T, strict=True):
            if np.ptp(values) == 0:
                raise ValueError(
                    f"All {len(values)} training videos have {values[0]:g} as {name!r}, so there is nothing to learn. "
                    "Give videos with other numbers."
                )
        return cls(*(torch.tensor(found, dtype=torch.float32) for found in (numbers.mean(0), numbers.std(0))))

    def normalized(self, targets: Tensor) -> Tensor:
        """Return numbers with mean 0 and standard deviation 1, ``(B, C)``."""
        return (targets - self.mean.to(targets)) / self.std.to(targets)

    @torch.no_grad()
    def fold(self, model: PeftModel) -> None:
        """Change the head of the active adapter so that it predicts numbers in their own units."""
        head = head_of(model)
        head.weight.mul_(self.std.to(head.weight)[:, None])
        head.bias.mul_(self.std.to(head.bias)).add_(self.mean.to(head.bias))

    @contextmanager
    def folded(self, model: PeftModel) -> Iterator[None]:
        """Let the head predict numbers in their own units for a while; its weights are then exactly as before."""
        head = head_of(model)
        before = [parameter.detach().clone() for parameter in (head.weight, head.bias)]
        self.fold(model)
        try:
            yield
        finally:
            with torch.no_grad():
                head.weight.copy_(before[0])
                head.bias.copy_(before[1])


def head_of(model: nn.Module) -> nn.Linear:
    """Return the head of the active adapter."""
    head = next(module for module in model.modules() if isinstance(module, AIMHead))
    return head.aim_head[head.current]
