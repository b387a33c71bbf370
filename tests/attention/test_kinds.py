"""Which kind of temporal attention is found for which attention, and what the kinds compute."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor, nn

from benchmarks.coverage import catalogue
from peft_aim import AIMConfig
from peft_aim.attention.kinds import USERS_KINDS, OnGrid, Unrotated, along_time, in_words, plain
from peft_aim.attention.projected import Projected
from peft_aim.attention.recognize import find_kind
from peft_aim.backbone.anatomy import PartNames
from peft_aim.backbone.inspection import inspect_backbone
from peft_aim.tracing import Layout


@pytest.mark.parametrize(
    ("library", "name", "expected"),
    [
        ("timm", "gemma4_vit_167m", Unrotated),
        ("timm", "visformer_tiny", OnGrid(1)),
        ("timm", "sam2_hiera_tiny", OnGrid(-1)),
        ("timm", "xcit_nano_12_p16_224", plain),
        ("timm", "swinv2_tiny_window8_256", {"log_scale": "logit_scale", "inner": ("qkv",), "out": "proj"}),
        ("timm", "maxvit_tiny_rw_224", {"by_head": True}),
        ("timm", "levit_128", {"by_head": True, "out": "proj"}),
        ("timm", "tiny_vit_5m_224", {"first": "norm"}),
        ("timm", "pvt_v2_b0", {"inner": ("q", "kv")}),
        ("timm", "mvitv2_tiny", {"adds_query": True, "norms": ("norm_q", "norm_k", "norm_v")}),
        ("torchvision", "swin_v2_t", {"keys_unbiased": True, "log_scale": "logit_scale"}),
        ("transformers", "cvt", {"inner": tuple(f"attention.projection_{p}" for p in ("query", "key", "value"))}),
        ("transformers", "levit", {"before_out": "activation", "inner": ("queries_keys_values",)}),
    ],
)
def test_found_by_structure(library, name, expected):
    blocks = inspect_backbone(catalogue.build(library, name), PartNames()).blocks
    kind = list(blocks.values())[-1].attend
    if isinstance(expected, dict):
        assert {option: getattr(kind, option) for option in expected} == expected
    else:
        assert kind == expected or type(kind) is expected
    assert in_words(kind).startswith(("its own forward", "softmax attention with its own projections"))


X = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | Tensor) -> Tensor:
    """Each ``(M, heads, T, d)``; the result ``(M, T, heads * d)``."""
    return (torch.softmax(q @ k.mT * scale, dim=-1) @ v).transpose(1, 2).flatten(2)


@torch.no_grad()
def test_features_by_head_and_values_wider_than_keys():
    """LeViT: heads of 4 for keys and 8 for values; batch norms are folded into the projections."""
    attention = timm.models.levit.Attention(32, 4, num_heads=4, attn_ratio=2, resolution=4)
    attention.eval()  # returns nothing
    attention.proj.ln.bn.weight.fill_(1)  # it starts at 0
    attention.attention_biases.normal_()
    kind = find_kind(attention, (1, 16, 32), {})
    q, k, v = attention.qkv(X).unflatten(-1, (4, 16)).transpose(1, 2).split([4, 4, 8], dim=-1)
    expected = attention.proj(softmax_attention(q, k, v, 4**-0.5))
    assert torch.allclose(kind(attention, X), expected, atol=1e-5)


@torch.no_grad()
def test_cosine_similarity():
    attention = timm.models.swin_transformer_v2.WindowAttention(32, (4, 4), num_heads=2).eval()
    attention.logit_scale.copy_(torch.tensor([0.5, 9.0]).view(2, 1, 1))  # the second is above the limit of 100
    attention.q_bias.normal_(), attention.v_bias.normal_()
    kind = find_kind(attention, (4, 16, 32), {})
    bias = torch.cat([attention.q_bias, torch.zeros(32), attention.v_bias])
    q, k, v = (F.linear(X, attention.qkv.weight, bias)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    scale = torch.tensor([math.exp(0.5), 100.0]).view(2, 1, 1)
    expected = attention.proj(softmax_attention(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, scale))
    assert torch.allclose(kind(attention, X), expected, atol=1e-5)


@torch.no_grad()
def test_channels_first_is_attention_over_the_columns_of_one_row():
    attention = timm.models.visformer.Attention(32, num_heads=2).eval()
    kind = find_kind(attention, (2, 32, 4, 4), {}, Layout(channels=1))
    q, k, v = attention.qkv(X.mT[..., None])[..., 0].mT.unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    mixed = softmax_attention(q, k, v, 16**-0.5)
    expected = attention.proj(mixed.mT[..., None])[..., 0].mT
    assert torch.allclose(kind(attention, X), expected, atol=1e-5)


class Biased(nn.Module):
    """Attention that insists on a bias, and adds positions of its own if that is missing."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, bias, x):
        x = x + torch.arange(x.shape[1])[:, None].sin() if bias is None else x + bias
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.fixture
def users_kinds():
    yield USERS_KINDS
    USERS_KINDS.clear()


def test_users_teach_kinds_of_their_own(users_kinds):
    with pytest.raises(ValueError, match="Biased cannot be used as temporal attention"):
        find_kind(Biased(), (1, 5, 8), {})

    @along_time(Biased)
    def unbiased(attention, x):
        """its own forward without a bias."""
        return attention.forward(0, x)

    assert find_kind(Biased(), (1, 5, 8), {}) is unbiased and in_words(unbiased) == "its own forward without a bias"

    along_time(Biased)(lambda attention, x: attention.forward(None, x))
    with pytest.raises(ValueError, match="<lambda>: the result depends on positions in the sequence"):
        find_kind(Biased(), (1, 5, 8), {})


class Causal(nn.MultiheadAttention):
    def forward(self, query, key, value, **kwargs):
        mask = nn.Transformer.generate_square_subsequent_mask(query.shape[1], dtype=query.dtype)
        return super().forward(query, key, value, attn_mask=mask, need_weights=False)


def test_causal_attention_is_refused():
    with pytest.raises(ValueError, match="Causal cannot be used as temporal attention .*depends on positions"):
        find_kind(Causal(8, 2, batch_first=True), (1, 5, 8), {})


class AtHome(nn.MultiheadAttention):
    """Adds a bias of space, but only where it fits."""

    def forward(self, query, key, value, **kwargs):
        x = query + torch.arange(16)[:, None] if query.shape[1] == 16 else query
        return super().forward(x, x, x, need_weights=False)


def test_a_bias_that_acts_at_its_own_length_alone_is_found():
    find_kind(AtHome(8, 2, batch_first=True), (1, 9, 8), {})
    with pytest.raises(ValueError, match="depends on positions"):
        find_kind(AtHome(8, 2, batch_first=True), (1, 16, 8), {})


def test_the_norm_on_queries_is_not_left_out():
    """A norm that stands for scale alone would be dropped where pooled keys are replaced by plain ones."""
    kinds = [
        anatomy.attend
        for anatomy in inspect_backbone(catalogue.build("timm", "mvitv2_tiny"), PartNames()).blocks.values()
    ]
    assert all(isinstance(kind, Projected) and len(kind.norms) == 3 for kind in kinds)


def test_stages_that_are_run_again_know_their_frames():
    """timm's MaxViT recomputes whole stages, in which blocks get tokens that nobody has seen before."""
    model = get_peft_model(catalogue.build("timm", "maxvit_tiny_rw_224"), AIMConfig(num_frames=4)).train()
    model.set_grad_checkpointing(True)
    one, other = (torch.randn(2, frames, 3, 64, 64) for frames in (4, 2))
    scores = model(one), model(other)
    scores[1].sum().backward()
    scores[0].sum().backward()
    scores = model(one), model(torch.randn(4, 2, 3, 64, 64))  # as many images of both
    with pytest.raises(ValueError, match=r"while calls on clips of \[2, 4\] frames still await backward"):
        scores[0].sum().backward()
    del scores
    model(one).sum().backward()


def test_images_in_patch_groups():
    """MobileViT's tokens lead with the images' patch groups: another number of groups raises an error."""
    model = get_peft_model(catalogue.build("timm", "mobilevit_xs"), AIMConfig(num_frames=2))
    layers = [m for m in model.modules() if type(m).__name__ == "AIMLayer"]
    assert {layer.anatomy.tokens.groups for layer in layers} == {4}
    layers[0].register_forward_pre_hook(lambda module, args: (args[0][:-1], *args[1:]))
    with pytest.raises(ValueError, match="its batch is not 4 images of 4 patch groups, so frames"):
        model(torch.randn(2, 2, 3, 64, 64))
