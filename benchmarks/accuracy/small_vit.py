"""Backbone of the benchmark on synthetic clips: a small ViT, pretrained on still images of digits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks.accuracy.reversals import FAINTEST, paint
from benchmarks.training.loop import minimize
from peft_aim.video.demo import SIZE, stills

WIDTH, DEPTH, HEADS, PATCH = 64, 4, 4, 8
PICTURES, BATCH, LR = 20_000, 128, 2e-3


def small_vit() -> VisionTransformer:
    """Return a ViT with random weights; its head predicts the labels of :func:`~peft_aim.video.demo.digits.stills`."""
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 2}
    return VisionTransformer(SIZE, PATCH, in_chans=1, num_classes=24, **sizes)


def pretrained(steps: int) -> tuple[nn.Module, float]:
    """Pretrain on still images, painted like the clips.

    Args:
        steps: Number of steps.

    Returns:
        The backbone, and its accuracy in recognizing digits.
    """
    torch.manual_seed(0)
    model, (pictures, answers) = small_vit(), painted_stills(PICTURES)
    loss = lambda indices: F.binary_cross_entropy_with_logits(model(pictures[indices]), answers[indices])
    minimize(model, loss, len(pictures), steps, BATCH, LR)
    pictures, answers = painted_stills(1_000)
    with torch.no_grad():
        digits = model(pictures)[:, :10].argmax(1)
    return model, (digits == answers[:, :10].argmax(1)).float().mean().item()


def painted_stills(count: int) -> tuple[Tensor, Tensor]:
    """Return still images ``(M, 1, H, W)`` and their binary labels ``(M, 24)``."""
    masks, answers = stills(count)
    masks = masks * (FAINTEST + (1 - FAINTEST) * torch.rand(count, 1, 1))
    return paint(masks, count).unsqueeze(1), answers
