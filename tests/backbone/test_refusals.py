"""Blocks and attentions that would be adapted to silently wrong results are rejected."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor, nn

from benchmarks.coverage import catalogue, laws
from peft_aim import AIMConfig
from peft_aim.attention.recognize import find_kind
from peft_aim.backbone.anatomy import PartNames
from peft_aim.backbone.inspection import inspect_backbone
from peft_aim.layers.block import AIMLayer
from peft_aim.tracing.copies import traits

D, N = 8, 16


class Block(nn.Module):
    """A standard block; subclasses change one thing."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attn = nn.MultiheadAttention(D, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(D, 16), nn.GELU(), nn.Linear(16, D))
        self.extra = nn.Linear(D, D, bias=False)

    def attend(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        return self.attn(h, h, h, need_weights=False)[0]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        return x + self.mlp(self.norm2(x))


class NormOutOfSight(Block):
    def attend(self, x):
        h = F.layer_norm(x, (D,), self.norm1.weight, self.norm1.bias)
        return self.attn(h, h, h, need_weights=False)[0]


class LinearBetween(Block):
    def attend(self, x):
        h = self.extra(self.norm1(x))
        return self.attn(h, h, h, need_weights=False)[0]


class ScaledBetween(Block):
    def attend(self, x):
        h = self.norm1(x) * torch.arange(1.0, D + 1)
        return self.attn(h, h, h, need_weights=False)[0]


class TwoAttentions(Block):
    def __init__(self):
        super().__init__()
        self.attn2 = nn.MultiheadAttention(D, 2, batch_first=True)

    def attend(self, x):
        h = super().attend(x)
        return self.attn2(h, h, h, need_weights=False)[0]


class ToLatents(Block):
    def attend(self, x):
        latents = self.extra(x)[:, :6]
        return self.attn(self.norm1(x), latents, latents, need_weights=False)[0]


class NormOfImages(Block):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm((N, D))


class Gate(nn.Module):
    """Squeeze-and-excitation, which is often named attention."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(D, D)

    def forward(self, x):
        return x * self.fc(x.mean(1, keepdim=True)).sigmoid()


class GateAsAttention(Block):
    def __init__(self):
        super().__init__()
        self.attn = Gate()

    def attend(self, x):
        return self.attn(self.norm1(x))


class Toy(nn.Module):
    def __init__(self, block: nn.Module):
        super().__init__()
        self.image_size = (32, 32)
        self.stem, self.blocks, self.head = nn.Conv2d(3, D, 8, 8), nn.Sequential(block), nn.Linear(D, 2)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x).flatten(2).mT).mean(1))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (NormOutOfSight, "its attention is called neither on its input nor on the normalized input"),
        (LinearBetween, "its attention is not called on the output of its first norm"),
        (ScaledBetween, "its attention is not called on the output of its first norm"),
        (TwoAttentions, "it calls two attentions, attn and attn2"),
        (ToLatents, r"its attention also gets tokens \(2, 6, 8\) as key, so it attends to tokens other than its own"),
        (NormOfImages, "its norm norm1, a LayerNorm, normalizes over all spatial positions"),
        (GateAsAttention, "Gate cannot be used as temporal attention .*it only scales the channels of each token"),
    ],
)
def test_deceptive_blocks_are_rejected(block, reason):
    assert inspect_backbone(Toy(Block()), PartNames()).blocks
    with pytest.raises(ValueError, match=reason):
        get_peft_model(Toy(block()), AIMConfig())


@pytest.mark.parametrize("options", [{}, {"temporal": "auto"}])
def test_a_model_without_tokens_gets_no_advice_that_cannot_help(options):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 15 * 15, 2))
    model.image_size = (32, 32)
    with pytest.raises(ValueError, match="maps tokens to tokens of the same shape, so a convolution over time is not"):
        get_peft_model(model, AIMConfig(**options))
    with pytest.raises(ValueError, match=r"matches 2, which AIM cannot adapt as a block.\nThis Sequential has no "):
        get_peft_model(model, AIMConfig(target_modules="2", **options))


@pytest.mark.parametrize("name", ["eca_vovnet39b", "nf_seresnet26"])
def test_channel_gates_are_not_attention(name):
    with pytest.raises(ValueError, match="has no block that AIM can adapt"):
        get_peft_model(timm.create_model(name), AIMConfig())


class WithBias(nn.Module):
    """Attention with a spatial bias, so that only its projections can be used; subclasses add one thing."""

    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.bias_table = nn.Parameter(torch.zeros(2, N, N))
        self.extra = nn.Parameter(torch.zeros(2, 1, 1))
        self.gate, self.norm = nn.Linear(D, D), nn.LayerNorm(D)

    def scores(self, q, k):
        return q @ k.mT / 2

    def after(self, x, mixed):
        return self.proj(mixed)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = (self.scores(q, k) + self.bias_table).softmax(-1)
        return self.after(x, (weights @ v).transpose(1, 2).flatten(2))


class Temperature(WithBias):
    def scores(self, q, k):
        return q @ k.mT / 2 * self.extra.exp()


class Gated(WithBias):
    def after(self, x, mixed):
        return self.proj(mixed) * 2 * self.gate(x).sigmoid()


class Beside(WithBias):
    def after(self, x, mixed):
        return self.proj(mixed) + self.gate(x)


class Bounded(WithBias):
    def after(self, x, mixed):
        return self.proj(self.norm(mixed).tanh())


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (Temperature, "they leave out extra, which does not depend on positions"),
        (Gated, "they leave out gate.weight, which does not depend on positions"),
        (Beside, "they leave out gate.weight, which does not depend on positions"),
        (Bounded, "they do not reproduce its own forward"),
    ],
)
def test_only_spatial_terms_are_left_out(attention, reason):
    class Plain(WithBias):
        pass

    assert find_kind(Plain(), (2, N, D), {}).inner == ("qkv",)
    with pytest.raises(ValueError, match=reason):
        find_kind(attention(), (2, N, D), {})


def test_other_buffers_are_other_traits():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    one.register_buffer("mask", torch.zeros(2))
    other.register_buffer("mask", torch.ones(2))
    assert traits(one) != traits(other)


def test_finding_the_kind_keeps_the_random_state():
    attention = WithBias()
    state = torch.get_rng_state()
    find_kind(attention, (2, N, D), {})
    assert torch.equal(torch.get_rng_state(), state)


def test_an_mlp_in_two_halves_holds_no_activations():
    """transformers' CvT: the input of the first half is released after the second half, whether or not it was used."""
    for options in ({}, {"joint": False}):
        model = get_peft_model(catalogue.build("transformers", "cvt"), AIMConfig(num_frames=2, **options))
        model(torch.randn(1, 2, 3, 64, 64))
        layers = [module for module in model.modules() if isinstance(module, AIMLayer)]
        assert layers[0].anatomy.mlp != layers[0].anatomy.mlp_end
        assert all(layer._mlp_input.get() is None for layer in layers)


def test_a_bias_cached_for_evaluation_is_cleared():
    """timm's LeViT caches its bias in evaluation mode, so weights loaded later must not meet a stale one."""
    backbone, other = catalogue.build("timm", "levit_128"), catalogue.build("timm", "levit_128")
    for parameter in other.parameters():
        parameter.data.mul_(0.9)
    images = torch.randn(1, 3, 128, 128)
    model = get_peft_model(backbone, AIMConfig(target_modules=r"stages\.0\.blocks\.\d")).unload()
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(images), other(images))


def test_post_norm_on_channels_first_images():
    """The norm takes images, ``(B, D, H, W)``, in the temporal branch too."""

    class NormsBehind(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = timm.models.visformer.Attention(D, num_heads=2)
            self.norm1, self.norm2 = timm.layers.LayerNorm2d(D), timm.layers.LayerNorm2d(D)
            self.mlp = nn.Sequential(nn.Conv2d(D, 16, 1), nn.GELU(), nn.Conv2d(16, D, 1))

        def forward(self, x):
            x = x + self.norm1(self.attn(x))
            return x + self.norm2(self.mlp(x))

    class Images(Toy):
        def forward(self, x):
            return self.head(self.blocks(self.stem(x)).mean((2, 3)))

    model = laws.adapt(Images(NormsBehind()))
    assert not laws.layers(model)[0].anatomy.norm_first
    clips = torch.randn(1, 4, 3, 32, 32)
    assert not torch.allclose(model(clips), model(clips.flip(1)))
