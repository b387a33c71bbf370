"""ST-Adapter (arXiv 2206.13559): a convolution over time in a bottleneck before each block of a frozen backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.methods.rivals import OverFrames, new_head
from peft_aim.backbone import Anatomy, PartNames, inspect_backbone


class STAdapter(nn.Module):
    r"""A block after an ST-Adapter, which changes the patch tokens only.

    .. math::
        x \leftarrow x + W_{up}\,\mathrm{DWConv}_{3 \times 1 \times 1}(W_{down}\,x)

    There is no nonlinearity and no norm. The convolution starts at zero, so the block starts as it was.

    Args:
        block: The block.
        anatomy: Its parts.
        frames: Frames T per clip.
        width: Width of the bottleneck.
        leading: Number of tokens before the patches, such as the class token.
    """

    def __init__(self, block: nn.Module, anatomy: Anatomy, frames: int, width: int, leading: int) -> None:
        super().__init__()
        self.block, self.frames, self.leading = block, frames, leading
        self.down, self.up = nn.Linear(anatomy.width, width), nn.Linear(width, anatomy.width)
        self.over_time = nn.Conv1d(width, width, kernel_size=3, padding=1, groups=width)
        for zero in (self.down.bias, self.up.bias, self.over_time.bias, self.over_time.weight):
            nn.init.zeros_(zero)

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run on tokens ``(B*T, N, D)``; other arguments are passed to the block."""
        leading, patches = tokens[:, : self.leading], tokens[:, self.leading :]
        z = self.down(patches).unflatten(0, (-1, self.frames))  # (B, T, N, r D)
        sequences = z.permute(0, 2, 3, 1)  # (B, N, r D, T)
        mixed = self.over_time(sequences.flatten(0, 1)).view(sequences.shape).permute(0, 3, 1, 2).flatten(0, 1)
        return self.block(torch.cat([leading, patches + self.up(mixed)], dim=1), *args, **kwargs)


def st_adapter(backbone: nn.Module, classes: int, frames: int, width: int) -> OverFrames:
    """Return ST-Adapter in every block of a vision transformer of timm, averaged over frames.

    Like AIM's, the final norm is trained.

    Args:
        backbone: The backbone, frozen by this function.
        classes: Number of classes K.
        frames: Frames T per clip.
        width: Width of the bottlenecks; the paper has half the token width.
    """
    found = inspect_backbone(backbone.requires_grad_(False), PartNames())
    new_head(backbone, found, classes)
    for name, anatomy in found.blocks.items():
        block = backbone.get_submodule(name)
        backbone.set_submodule(name, STAdapter(block, anatomy, frames, width, backbone.num_prefix_tokens))
    for name in found.final_norms:
        backbone.get_submodule(name).requires_grad_()
    return OverFrames(backbone)
