"""Reference implementation of AIM, transcribed from the paper's equations without optimizations; a baseline of cost.

It calls the backbone's own modules, as the official code does. :mod:`tests.paper`, which checks numbers, does not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.methods.rivals import OverFrames, new_head
from peft_aim.backbone import Anatomy, PartNames, inspect_backbone
from peft_aim.layers import initialize
from peft_aim.tracing import first_tensor


class Adapter(nn.Module):
    """Bottleneck ``W_up gelu(W_down x)``, zero at initialization (figure 2a)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, width // 4), nn.Linear(width // 4, width)
        initialize(self.down)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to tokens, ``(*, D) -> (*, D)``."""
        return self.up(F.gelu(self.down(x)))


class ReferenceBlock(nn.Module):
    """A block ``x + attn(norm1(x))``, ``x + mlp(norm2(x))`` with AIM's three adapters (figure 2e).

    Args:
        block: The block, with plain residual branches on tokens ``(B*T, N, D)``.
        anatomy: The parts of the block.
        frames: Frames T per clip.
    """

    def __init__(self, block: nn.Module, anatomy: Anatomy, frames: int) -> None:
        super().__init__()
        parts = (anatomy.norm1, anatomy.attention, anatomy.norm2, anatomy.mlp)
        self.norm1, self.attn, self.norm2, self.mlp = map(block.get_submodule, parts)
        self.temporal, self.spatial, self.joint = (Adapter(anatomy.width) for _ in range(3))
        self.attend, self.frames = anatomy.attend, frames

    def forward(self, x: Tensor) -> Tensor:
        """Run on tokens, ``(B*T, N, D) -> (B*T, N, D)``."""
        (_, n, d), t = x.shape, self.frames
        h = x.view(-1, t, n, d).transpose(1, 2).reshape(-1, t, d)  # (B*N, T, D)
        h = self.temporal(first_tensor(self.attend(self.attn, self.norm1(h))))
        x = x + h.view(-1, n, t, d).transpose(1, 2).reshape(x.shape)
        a = first_tensor(self.attn(self.norm1(x)))
        x = x + a + self.spatial(a)
        h = self.norm2(x)
        return x + self.mlp(h) + 0.5 * self.joint(h)


class Embedded(nn.Module):
    """A module preceded by the temporal embedding: the first block, or CLIP's norm before it."""

    def __init__(self, module: nn.Module, width: int, frames: int) -> None:
        super().__init__()
        self.module, self.embedding = module, nn.Parameter(torch.zeros(1, frames, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """Run on tokens ``(B*T, N, D)``."""
        return self.module((x.unflatten(0, (-1, self.embedding.shape[1])) + self.embedding).flatten(0, 1))


def reference_aim(backbone: nn.Module, classes: int, frames: int) -> OverFrames:
    """Return the reference implementation of AIM: a frozen backbone, adapters, a temporal embedding and a new head."""
    found = inspect_backbone(backbone.requires_grad_(False), PartNames())
    new_head(backbone, found, classes)
    for name, anatomy in found.blocks.items():
        block = backbone.get_submodule(name)
        transcribed = ReferenceBlock(block, anatomy, frames)
        check_alike(block, transcribed, torch.randn(frames, 5, anatomy.width))
        backbone.set_submodule(name, transcribed)
    for block, pre_norm in found.entries.items():
        name, width = pre_norm or block, found.blocks[block].width
        backbone.set_submodule(name, Embedded(backbone.get_submodule(name), width, frames))
    return OverFrames(backbone)


@torch.no_grad()
def check_alike(block: nn.Module, transcribed: ReferenceBlock, tokens: Tensor) -> None:
    """Check that a block and its transcription agree while the adapters add nothing.

    Raises:
        ValueError: If they differ, as they do for blocks with LayerScale or post-norm.
    """
    training = block.training
    if not torch.allclose(first_tensor(block.eval()(tokens)), transcribed.eval()(tokens), atol=1e-4):
        raise ValueError(
            f"{type(block).__name__} computes something other than x + attn(norm1(x)), x + mlp(norm2(x)). The "
            "reference implementation covers no other block: use a plain vision transformer."
        )
    block.train(training), transcribed.train(training)
