"""Modules that mix spatial positions in other ways than blocks do: none of them is skipped without a word."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import zoo
from home_made import MSA, D, Foo, Net, feed_forward, mlp
from peft import get_peft_model
from torch import Tensor, nn

from peft_aim import AIMConfig
from peft_aim.layers import AIMLayer


class Block(nn.Module):
    def __init__(self, attention: Callable[[], nn.Module] = MSA) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(D), attention(), nn.LayerNorm(D), mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Between(nn.Module):
    """A trunk of two blocks with something between them."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.blocks, self.between = nn.ModuleList([Block(), Block()]), between

    def mix(self, x: Tensor) -> Tensor:
        return x + self.between(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[1](self.mix(self.blocks[0](x)))


class OwnAttention(Between):
    """Attention in the trunk's own forward."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(D, 3 * D))

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.between(x).chunk(3, -1)
        return x + (q @ k.mT / 5).softmax(-1) @ v


class OwnFourier(Between):
    """Fourier mixing in the trunk's own forward."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def mix(self, x: Tensor) -> Tensor:
        return x + torch.fft.fft2(x).real


class GraphAttention(nn.Module):
    """Attention with raw matrices and the attributes of ``nn.Linear``, as pyGAT's."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = D, D
        self.W, self.a = nn.Parameter(torch.randn(D, D)), nn.Parameter(torch.randn(2 * D, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.W
        return nn.functional.leaky_relu(h @ self.a[:D] + (h @ self.a[D:]).mT).softmax(-1) @ h


class NormalizedAttention(nn.Module):
    """Attention with raw matrices, named after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(D, D) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w @ x.mT).softmax(-1) @ x


class NormalizedBlock(Block):
    def __init__(self) -> None:
        super().__init__()
        self.extra = NormalizedAttention()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.extra(x))


def adapt(trunk: nn.Module, **options: object) -> nn.Module:
    torch.manual_seed(0)
    backbone = Net(trunk).eval()
    zoo.randomize(backbone)
    return get_peft_model(backbone, AIMConfig(num_frames=4, **options))


def adapters(model: nn.Module) -> dict[str, str]:
    """Return the first letters of the adapters of each block."""
    layers = {
        n.removeprefix("base_model.model.trunk."): m for n, m in model.named_modules() if isinstance(m, AIMLayer)
    }
    kinds = ("temporal", "spatial", "joint")
    return {name: "".join(k[0] for k in kinds if layer.has("default", k)) for name, layer in layers.items()}


MIXED = {
    "attention of the trunk": (OwnAttention, "trunk: it mixes spatial positions"),
    "fourier mixing of the trunk": (OwnFourier, "trunk: it mixes spatial positions"),
    "raw matrices": (lambda: Between(GraphAttention()), "trunk.*: it mixes spatial positions"),
    "raw matrices in a block": (
        lambda: nn.Sequential(Block(GraphAttention), Block()),
        "trunk.0.*: .*spatial positions",
    ),
    "named after a norm": (lambda: nn.Sequential(NormalizedBlock(), Block()), "trunk.0.*mixes spatial positions"),
}


@pytest.mark.parametrize("name", MIXED)
def test_no_mixing_of_positions_is_skipped_silently(name):
    trunk, message = MIXED[name]
    with pytest.raises(ValueError, match=rf"(?s)but not these:\n.*{message}"):
        adapt(trunk())


def test_a_projection_in_the_caller_is_no_skip_connection():
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Foo(), nn.Linear(D, D), feed_forward()])

        def forward(self, x: Tensor) -> Tensor:
            attend, project, mix = self.layers
            x = x + project(attend(x))
            return x + mix(x)

    with pytest.raises(ValueError, match="trunk.layers.0: .*does not add its output to its input with factor 1"):
        adapt(Outside())
