"""Modules that raise an error on marked tokens, and attention to a pooled grid, are observed all the same."""

from __future__ import annotations

import re

import home_made
import pytest
import torch
import torch.nn.functional as F
import zoo
from home_made import D, FeedForward, Foo, Net, Pairs, Residual
from peft import get_peft_model
from torch import Tensor, nn

from peft_aim import AIMConfig
from peft_aim.backbone import inspect_backbone
from peft_aim.backbone.mixing import mixers
from peft_aim.tracing import trace


class Finite(Foo):
    """Attention that checks its tokens."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.isfinite().all(), "not finite"
        return super().forward(x)


class InRange(Foo):
    """Attention that checks what it returns."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not y.abs().max() < 1e3:
            raise FloatingPointError("out of range")
        return y


class Weighted(Foo):
    """Attention with a check of its weights, which add up to 1."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(F.normalize(self.n(x), dim=-1)).chunk(3, -1)
        weights = (q @ k.mT).softmax(-1)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
        return self.to_out(weights @ v)


class CheckedMLP(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        assert x.isfinite().all()
        return super().forward(x)


@pytest.mark.parametrize("attention", [Finite, InRange, Weighted])
@pytest.mark.parametrize("mlp", [FeedForward, CheckedMLP])
def test_modules_that_raise_on_nan_are_adapted(attention, mlp):
    backbone = Net(Pairs(attention, mlp)).eval()
    found = inspect_backbone(backbone)
    assert [*found.pairs.values()] == [f"trunk.layers.{index}.1" for index in range(home_made.DEPTH)]
    assert not found.left_out
    clips = zoo.make_clips()
    before = zoo.frame_average(backbone, clips)
    torch.testing.assert_close(get_peft_model(backbone, AIMConfig(num_frames=zoo.FRAMES)).eval()(clips), before)


def test_they_are_not_skipped_beside_other_blocks():
    backbone = Net(nn.Sequential(*zoo.build("timm_vit").blocks, Finite()))
    message = r"(?s)can adapt 3 blocks of Net, but not these:\n  trunk.3: it mixes spatial positions, but its caller"
    with pytest.raises(ValueError, match=message):
        get_peft_model(backbone, AIMConfig())


class CheckedNet(Net):
    def forward(self, images: Tensor) -> Tensor:
        if images.isnan().any():
            raise ValueError("bad images")
        return super().forward(images)


class CheckedNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        assert x.isfinite().all(), "bad tokens"
        return super().forward(x)


def test_so_are_models_with_checks_outside_of_blocks():
    backbone = CheckedNet(Pairs(Foo, FeedForward))
    backbone.norm = CheckedNorm(D)
    found = inspect_backbone(backbone)
    assert len(found.pairs) == home_made.DEPTH and found.final_norms == ["norm"]


class Alike(nn.LayerNorm):
    """A norm that runs on two images alike only, or on noise."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.equal(x[0], x[1]) and not x[0].var() > 0.5:
            raise ValueError("images differ\n  much")
        return super().forward(x)


def test_a_module_that_runs_on_no_other_numbers_is_named():
    backbone = Net(Pairs(Foo, FeedForward))
    backbone.norm = Alike(D)
    message = (
        "norm, a Alike, raises ValueError (images differ) where AIM runs the model without its arithmetic, on "
        "arbitrary numbers, to see where its tokens go. If it checks its tokens, leave the check out until the "
        "adapters are added; it may be on again afterwards."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        get_peft_model(backbone, AIMConfig())


class Pooled(nn.Module):
    """Attention whose keys and values all come from an adaptive pool, under a name that says nothing."""

    def __init__(self, cells: int = 5, convolution: bool = False) -> None:
        super().__init__()
        self.q, self.kv, self.out, self.pool = (
            nn.Linear(D, D),
            nn.Linear(D, 2 * D),
            nn.Linear(D, D),
            nn.AdaptiveAvgPool1d(cells),
        )
        self.local = nn.Conv1d(D, D, 3, padding=1, groups=D) if convolution else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(self.local(self.pool(x.mT)).mT).chunk(2, -1)
        return self.out((self.q(x) @ k.mT / 5).softmax(-1) @ v)


class Pyramid(nn.Module):
    """Pooled grids, resized again, as decoders for segmentation have them."""

    def __init__(self, cells: int, mode: str) -> None:
        super().__init__()
        self.pool, self.reduce, self.fuse, self.mode = (
            nn.AdaptiveAvgPool2d(cells),
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(16, 8, 3, padding=1),
            mode,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(self.reduce(self.pool(x)), x.shape[2:], mode=self.mode)
        return self.fuse(torch.cat([x, y], 1))


def found_in(module: nn.Module, *shape: int) -> list[str]:
    return [call.name for call in mixers(trace(module, {"x": torch.zeros(shape)})[0])]


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("check", [False, True])
def test_attention_to_a_pooled_grid_mixes_positions(convolution, check):
    class Checked(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            assert not check or x.isfinite().all()
            return super().forward(x)

    assert found_in(Checked(convolution=convolution), 2, 16, D) == [""]
    trunk = nn.Sequential(*zoo.build("timm_vit").blocks, Residual(Checked(convolution=convolution)))
    with pytest.raises(ValueError, match=r"(?s)but not these:\n  trunk.3.fn: it mixes spatial positions, but Checked"):
        get_peft_model(Net(trunk), AIMConfig())


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("cells", [1, 2, 3, 6])
def test_a_resized_grid_is_no_attention(cells, mode):
    assert found_in(Pyramid(cells, mode), 2, 8, 12, 12) == []
