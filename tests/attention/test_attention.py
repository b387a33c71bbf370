"""How temporal attention runs: each kind computes what softmax attention does, and anything else raises an error."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import zoo
from peft import get_peft_model
from timm.layers import set_fused_attn
from timm.models.swin_transformer import WindowAttention
from timm.models.xcit import XCA
from torch import Tensor, nn

from peft_aim import AIMConfig
from peft_aim.attention.kinds import Unrotated, multihead, plain
from peft_aim.attention.projected import Projected
from peft_aim.attention.recognize import find_kind
from peft_aim.layers.block import AIMLayer

X = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))


def by_hand(x: Tensor, qkv: Tensor, bias: Tensor, out: nn.Linear, heads: int = 2) -> Tensor:
    q, k, v = (x @ qkv.T + bias).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
    return out((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("timm_vit", plain),
        ("hf_beit", plain),  # its bias is the block's to add
        ("open_clip_vit", multihead),
        ("torchvision_vit", multihead),
        ("hf_dinov3", Unrotated(("position_embeddings",), 16)),
        ("timm_beit", Projected(("qkv",), "proj", 2)),
        ("timm_swin", Projected(("qkv",), "proj", 2)),
        ("torchvision_swin", Projected(("qkv",), "proj", 2)),
        ("hf_swin", Projected(("q_proj", "k_proj", "v_proj"), "o_proj", 2)),
    ],
)
@torch.no_grad()
def test_each_kind_is_softmax_attention_by_the_modules_own_weights(name, kind):
    model = get_peft_model(zoo.build(name), AIMConfig())
    layer = next(module for module in model.modules() if isinstance(module, AIMLayer))
    attention = layer.base_layer.get_submodule(layer.anatomy.attention)
    assert layer.anatomy.attend == kind
    weights = {key: t for key, t in attention.named_parameters()}
    width = layer.anatomy.width
    if "in_proj_weight" in weights:
        qkv, bias, out = weights["in_proj_weight"], weights["in_proj_bias"], attention.out_proj
    elif "qkv.weight" in weights:
        qkv, out = weights["qkv.weight"], attention.proj
        separate = [weights.get("q_bias"), torch.zeros(width), weights.get("v_bias")]
        bias = weights["qkv.bias"] if "qkv.bias" in weights else torch.cat(separate)
    else:
        qkv = torch.cat([weights[f"{p}_proj.weight"] for p in "qkv"])
        bias = torch.cat([weights.get(f"{p}_proj.bias", torch.zeros(width)) for p in "qkv"])
        out = attention.o_proj
    x = X[..., :width]
    output = layer.anatomy.attend(attention, x)
    output = output[0] if isinstance(output, tuple) else output
    assert torch.allclose(output, by_hand(x, qkv, bias, out), atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_the_spatial_bias_stays_out_at_the_length_it_was_made_for(fused):
    """At T = 16 frames, a window of 4 x 4 would take its bias without complaint."""
    set_fused_attn(fused, experimental=fused)
    try:
        attention = WindowAttention(32, 2, window_size=4)
    finally:
        set_fused_attn(True)
    nn.init.normal_(attention.relative_position_bias_table)
    kind = find_kind(attention, (4, 16, 32), {})
    x = torch.randn(2, 16, 32)
    y = kind(attention, x)
    nn.init.normal_(attention.relative_position_bias_table)
    assert torch.equal(kind(attention, x), y)


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class Sinusoidal(nn.Module):
    """Attention that adds positions of its own: for any length, and from space."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = x + torch.arange(x.shape[1], dtype=x.dtype)[:, None].sin()
        return self.attention(x, x, x, need_weights=False)[0]


class AcrossTheBatch(Sinusoidal):
    def forward(self, x):
        x = x + x.mean(0, keepdim=True)
        return self.attention(x, x, x, need_weights=False)[0]


class QKNorm(nn.Module):
    """Has Swin's bias and, unlike Swin, norms on query and key."""

    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(4)
        self.bias = nn.Parameter(torch.zeros(5, 5))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(self.norm(q) @ self.norm(k).mT / 2 + self.bias, dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (Conv(), "depends on positions"),
        (Sinusoidal(), "depends on positions"),
        (AcrossTheBatch(), "sequences of a batch influence each other"),
        (nn.Linear(8, 8), "tokens of a sequence do not influence each other"),
        (nn.Linear(8, 16), "the shape changes"),
        (QKNorm(), "do not reproduce its own forward"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_no_attention_along_a_sequence_is_refused(attention, reason):
    with pytest.raises(ValueError, match=f"{type(attention).__name__} cannot be used as temporal attention.*{reason}"):
        find_kind(attention, (1, 5, 8), {})


def test_attention_between_channels_mixes_frames_as_it_is():
    assert find_kind(XCA(8, num_heads=2), (1, 5, 8), {}) is plain


def test_finding_the_kind_leaves_attention_and_random_numbers_alone():
    attention = timm.create_model("vit_tiny_patch16_224", depth=1).blocks[0].attn.train()
    before = {key: tensor.clone() for key, tensor in attention.state_dict().items()}
    state = torch.get_rng_state()
    find_kind(attention, (1, 197, 192), {})
    assert torch.equal(torch.get_rng_state(), state)
    assert attention.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in attention.state_dict().items())
