"""AIM written down literally from the paper's equations, as a yardstick of cost; without anything that saves.

Unlike :mod:`tests.paper`, which checks numbers, it calls the image model's own modules, as the official code does.
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
    """A bottleneck, ``W_up gelu(W_down x)``, zero at the start (figure 2a)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, width // 4), nn.Linear(width // 4, width)
        initialize(self.down)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to tokens ``(*, D)``."""
        return self.up(F.gelu(self.down(x)))


class LiteralBlock(nn.Module):
    """A block ``x + attn(norm1(x))``, ``x + mlp(norm2(x))`` with AIM's three adapters (figure 2e).

    Args:
        block: The block, of plain residual branches on tokens ``(B*T, N, D)``.
        anatomy: Its parts.
        frames: Frames T per clip.
    """

    def __init__(self, block: nn.Module, anatomy: Anatomy, frames: int) -> None:
        super().__init__()
        parts = (anatomy.norm1, anatomy.attention, anatomy.norm2, anatomy.mlp)
        self.norm1, self.attn, self.norm2, self.mlp = map(block.get_submodule, parts)
        self.temporal, self.spatial, self.joint = (Adapter(anatomy.width) for _ in range(3))
        self.attend, self.frames = anatomy.attend, frames

    def forward(self, x: Tensor) -> Tensor:
        """Run on tokens."""
        (_, n, d), t = x.shape, self.frames
        h = x.view(-1, t, n, d).transpose(1, 2).reshape(-1, t, d)  # (B*N, T, D)
        h = self.temporal(first_tensor(self.attend(self.attn, self.norm1(h))))
        x = x + h.view(-1, n, t, d).transpose(1, 2).reshape(x.shape)
        a = first_tensor(self.attn(self.norm1(x)))
        x = x + a + self.spatial(a)
        h = self.norm2(x)
        return x + self.mlp(h) + 0.5 * self.joint(h)


class Embedded(nn.Module):
    """Adds a temporal embedding to tokens before a module, the first block or CLIP's norm."""

    def __init__(self, module: nn.Module, width: int, frames: int) -> None:
        super().__init__()
        self.module, self.embedding = module, nn.Parameter(torch.zeros(1, frames, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """Run on tokens ``(B*T, N, D)``."""
        return self.module((x.unflatten(0, (-1, self.embedding.shape[1])) + self.embedding).flatten(0, 1))


def literal(backbone: nn.Module, classes: int, frames: int) -> OverFrames:
    """AIM by the letter: a frozen image model with adapters, a temporal embedding and a fresh head."""
    found = inspect_backbone(backbone.requires_grad_(False), PartNames())
    new_head(backbone, found, classes)
    for name, anatomy in found.blocks.items():
        block = backbone.get_submodule(name)
        transcribed = LiteralBlock(block, anatomy, frames)
        check_alike(block, transcribed, torch.randn(frames, 5, anatomy.width))
        backbone.set_submodule(name, transcribed)
    for block, pre_norm in found.entries.items():
        name, width = pre_norm or block, found.blocks[block].width
        backbone.set_submodule(name, Embedded(backbone.get_submodule(name), width, frames))
    return OverFrames(backbone)


@torch.no_grad()
def check_alike(block: nn.Module, transcribed: LiteralBlock, tokens: Tensor) -> None:
    """Check that a block computes what its transcription does as long as its adapters add nothing.

    Raises:
        ValueError: If not: it has LayerScale, say, or its norms behind.
    """
    training = block.training
    if not torch.allclose(first_tensor(block.eval()(tokens)), transcribed.eval()(tokens), atol=1e-4):
        raise ValueError(
            f"A {type(block).__name__} computes something else than x + attn(norm1(x)), x + mlp(norm2(x)), so this "
            "transcription is none of it. Take a plain vision transformer."
        )
    block.train(training), transcribed.train(training)
