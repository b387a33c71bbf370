"""Ways to attribute a score to the parts of a clip; ``peft-aim explain`` has the last one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from benchmarks.explain.models import PATCH
from peft_aim.video.attribution import BLUR, STEPS, attribute, in_cells, integrated_gradients, score_of

Candidate = Callable[[nn.Module, Tensor, int], Tensor]
NOISE = 0.3  # standard deviation, 15% of the range of pixels


def gradient_x_input(model: nn.Module, clip: Tensor, index: int) -> Tensor:
    """Multiply the gradient at the clip by the clip, ``(T, C, H, W) -> (T, h, w)``."""
    return in_cells((gradient(model, clip[None], index) * clip).sum(1))


def smooth_gradient_x_input(model: nn.Module, clip: Tensor, index: int) -> Tensor:
    """Average the gradient over noisy copies of the clip: SmoothGrad, arXiv 1706.03825."""
    generator = torch.Generator().manual_seed(0)
    noisy = clip + NOISE * torch.randn(STEPS, *clip.shape, generator=generator)
    return in_cells((gradient(model, noisy, index) * clip).sum(1))


def gradient_x_tokens(model: nn.Module, clip: Tensor, index: int) -> Tensor:
    """Multiply the tokens that enter the first block by their gradient; the cells are the patches."""
    entering: list[Tensor] = []

    def enter(block: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        entering.append(args[0].detach().requires_grad_())
        return (entering[0], *args[1:])

    with model.get_submodule("base_model.model.blocks.0").register_forward_pre_hook(enter):
        score = score_of(model, index, None)(clip[None]).sum()
    (slopes,) = torch.autograd.grad(score, entering)
    patches = (slopes * entering[0]).sum(-1)[:, 1:]  # without the class token
    return patches.detach().unflatten(1, (clip.shape[-2] // PATCH, -1))


def gradient(model: nn.Module, clips: Tensor, index: int) -> Tensor:
    """Return the mean gradient of the score at some clips, ``(B, T, C, H, W) -> (T, C, H, W)``."""
    clips = clips.clone().requires_grad_()
    return torch.autograd.grad(score_of(model, index, None)(clips).mean(), clips)[0].sum(0)


def integrated(baseline: Callable[[Tensor], Tensor]) -> Candidate:
    """Return integrated gradients from a baseline."""
    return lambda model, clip, index: in_cells(
        integrated_gradients(score_of(model, index, None), clip, baseline(clip).expand_as(clip))
    )


def blurred(frames: Tensor) -> Tensor:
    """Blur each frame."""
    deviation = BLUR * min(frames.shape[-2:])
    return gaussian_blur(frames, [2 * round(3 * deviation) + 1] * 2, [deviation] * 2)


CANDIDATES: dict[str, Candidate] = {
    "gradient x input": gradient_x_input,
    "SmoothGrad x input, 16 samples": smooth_gradient_x_input,
    "gradient x tokens of the first block": gradient_x_tokens,
    "integrated gradients from black": integrated(lambda clip: clip.amin()),
    "integrated gradients from the blurred frames": integrated(blurred),
    "integrated gradients from the mean frame": integrated(lambda clip: clip.mean(0)),
    "integrated gradients from the blurred mean frame": attribute,
}
