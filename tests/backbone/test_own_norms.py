"""Norms under any name are recognized by what they do to tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from home_made import MSA, D, Gamma, Net, mlp
from peft import get_peft_model
from torch import Tensor, nn

from peft_aim import AIMConfig
from peft_aim.backbone import inspect_backbone
from peft_aim.tracing import is_norm


class Scaler(nn.Module):
    """RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.g


class DyT(nn.Module):
    """Dynamic tanh (arXiv 2503.10622)."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.weight, self.bias = nn.Parameter(torch.ones(D)), nn.Parameter(torch.zeros(D))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x) * self.weight + self.bias


class Standardize(nn.Module):
    """LayerNorm of images (B, D, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, D, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == D and x.ndim == 4
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5) * self.gamma


class OverPositions(Scaler):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean((1, 2), keepdim=True)) * self.g


class Shift(Scaler):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.g


class WithoutScale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


class Block(nn.Module):
    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.mix, self.second, self.mlp = norm(), MSA(), norm(), mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.first(x))
        return x + self.mlp(self.second(x))


@pytest.mark.parametrize("norm", [Scaler, DyT])
def test_blocks_with_them_are_adapted(norm):
    found = inspect_backbone(Net(nn.Sequential(Block(norm), Block(norm))))
    parts = [(anatomy.norm1, anatomy.attention, anatomy.norm2, anatomy.mlp) for anatomy in found.blocks.values()]
    assert parts == [("first", "mix", "second", "mlp")] * 2


@pytest.mark.parametrize("kind", [Scaler, DyT, Standardize])
def test_they_are_norms(kind):
    assert is_norm(kind())


@pytest.mark.parametrize("kind", [OverPositions, Shift, Gamma, WithoutScale, nn.GELU, nn.Identity, nn.PReLU, MSA])
def test_others_are_not(kind):
    assert not is_norm(kind())


@pytest.mark.parametrize("kind", [Shift, Gamma, WithoutScale])
def test_what_stands_in_the_place_of_a_norm_is_named(kind):
    fact = f"a {kind.__name__}, which is not known to be a norm: it has no scale per channel, or does not limit the"
    with pytest.raises(ValueError, match=rf"trunk.0.mix.* \(it gets the output of trunk.0.first, {fact}"):
        get_peft_model(Net(nn.Sequential(Block(kind))), AIMConfig())

    class Named(Block):
        def __init__(self, norm: Callable[[], nn.Module]) -> None:
            super().__init__(norm)
            self.attn = self.mix
            del self.mix

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn(self.first(x))
            return x + self.mlp(self.second(x))

    with pytest.raises(ValueError, match=rf"trunk.0: its attention is called on the output of first, {fact}"):
        get_peft_model(Net(nn.Sequential(Named(kind))), AIMConfig())


def test_trying_them_leaves_no_trace():
    class Counting(Scaler):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    module, state = Counting(), torch.get_rng_state()
    assert is_norm(module) and module.calls == 0
    assert torch.equal(torch.get_rng_state(), state)
