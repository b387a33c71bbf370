"""Is token mixing other than softmax attention useful over time? ``python -m benchmarks.token_mixers``.

Small transformers that differ only in their attention are pretrained on still images of digits and frozen. AIM then
learns, with and without its temporal adapters, to classify whether the digit of a clip jumps to the other side. The
digit starts on either side, so the class is a relation between frames (exclusive or): no sum over frames of features
of single frames and their times contains it, and without temporal attention AIM is at chance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from peft import get_peft_model
from timm.layers import Mlp
from timm.models.swiftformer import EfficientAdditiveAttention
from timm.models.vision_transformer import Attention
from timm.models.xcit import XCA
from torch import Tensor, nn

from benchmarks.reporting.record import record
from benchmarks.reporting.tables import HERE, insert
from benchmarks.token_mixers.tables import table
from peft_aim import AIMConfig
from peft_aim.attention import OnGrid, along_time
from peft_aim.video.demo import RANGES, SIZE, Digits, draw, stills

WIDTH, DEPTH, HEADS, PATCH, FRAMES = 96, 4, 4, 8, 8
SEEDS = (0, 1, 2)

along_time(XCA)(lambda attention, x: attention.forward(x))
along_time(EfficientAdditiveAttention)(OnGrid(1))


class OnTokens(EfficientAdditiveAttention):
    """SwiftFormer's attention, made for images, on tokens ``(B, N, D)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, ``(B, N, D) -> (B, N, D)``."""
        return super().forward(x.mT.unsqueeze(2)).squeeze(2).mT


along_time(OnTokens)(lambda attention, x: attention.forward(x))

MIXERS: dict[str, Callable[[], nn.Module]] = {
    "softmax attention (ViT)": lambda: Attention(WIDTH, HEADS, qkv_bias=True),
    "channel attention (XCiT)": lambda: XCA(WIDTH, HEADS, qkv_bias=True),
    "additive attention (SwiftFormer)": lambda: OnTokens(WIDTH, WIDTH),
}


class Block(nn.Module):
    """Transformer block with any token mixer."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(WIDTH), mixer, nn.LayerNorm(WIDTH)
        self.mlp = Mlp(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, then features."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Backbone(nn.Module):
    """Small image transformer; its head predicts the 24 labels of pretraining."""

    def __init__(self, mixer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.image_size = (SIZE, SIZE)
        self.stem = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (SIZE // PATCH) ** 2, WIDTH))
        self.blocks = nn.Sequential(*(Block(mixer()) for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 24)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of images, ``(B, 1, H, W) -> (B, 24)``."""
        x = self.stem(x).flatten(2).mT + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


def main() -> None:
    """Run all mixers and seeds; write ``results/token_mixers.json`` and the table."""
    rows = []
    for name, mixer in MIXERS.items():
        for seed in SEEDS:
            torch.manual_seed(seed)
            backbone, right = pretrained(mixer)
            without, time = (adapted(backbone, seed, temporal) for temporal in (False, True))
            rows.append({"mixing": name, "seed": seed, "stills": right, "without": without, "with": time})
            print(rows[-1], flush=True)
    print(record("token_mixers", "python -m benchmarks.token_mixers", seed=0, chance=0.5, rows=rows))
    insert("token_mixers", table(rows), HERE)


def pretrained(mixer: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
    """Pretrain a backbone on still images and return it with its accuracy in recognizing digits."""
    model, (pictures, answers) = Backbone(mixer), stills(20_000)
    step = lambda batch: F.binary_cross_entropy_with_logits(model(pictures[batch, None] * 2 - 1), answers[batch])
    optimize(model, step, len(pictures), steps=400, batch=256, lr=2e-3)
    pictures, answers = stills(1_000)
    with torch.no_grad():
        digits = model(pictures[:, None] * 2 - 1)[:, :10].argmax(1)
    return model, float((digits == answers[:, :10].argmax(1)).float().mean())


def adapted(backbone: nn.Module, seed: int, temporal: bool) -> float:
    """Train an adapter, with or without temporal attention, and return its accuracy on held-out digits."""
    torch.manual_seed(seed)
    clips, labels = jumps(1000, held_out=False)
    config = AIMConfig(num_frames=FRAMES, num_labels=2, temporal=temporal)
    model = get_peft_model(backbone, config)
    step = lambda batch: F.cross_entropy(model(clips[batch]), labels[batch])
    optimize(model, step, len(clips), steps=400, batch=16, lr=3e-3)
    clips, labels = jumps(400, held_out=True)
    with torch.no_grad():
        right = float((model.eval()(clips).argmax(1) == labels).float().mean())
    model.unload()
    return right


def jumps(count: int, held_out: bool) -> tuple[Tensor, Tensor]:
    """Return clips of digits, ``(M, T, 1, H, W)``, and whether each digit changes sides, ``(M,)``."""
    digits = Digits.load(held_out)
    chosen = digits.images[torch.randint(len(digits.images), (count,))]
    starts, ends = torch.randint(2, (2, count))
    constant = {name: torch.rand(count) for name in ("y", "size", "angle")}
    frames = []
    for frame in range(FRAMES):
        side = starts if frame < FRAMES // 2 else ends
        at = {"x": 0.6 * side + 0.4 * torch.rand(count), **constant}
        frames.append(draw(chosen, **{n: RANGES[n][0] + (RANGES[n][1] - RANGES[n][0]) * at[n] for n in at}))
    return torch.stack(frames, dim=1)[:, :, None] * 2 - 1, (starts != ends).long()


def optimize(
    model: nn.Module, loss: Callable[[Tensor], Tensor], count: int, steps: int, batch: int, lr: float
) -> None:
    """Minimize the loss of random batches with AdamW and a one-cycle schedule."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(torch.randint(count, (batch,))).backward()
        optimizer.step()
        schedule.step()
    model.eval()


if __name__ == "__main__":
    main()
