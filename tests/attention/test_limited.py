"""Attentions whose projections reproduce their own forward, so that they can be limited to earlier frames."""

from __future__ import annotations

import pytest
import torch
from timm.models import cait, eva, gemma4_vit, nest
from torch import nn

from peft_aim.attention import find_causal, find_kind
from peft_aim.attention.recognize import random_twin
from peft_aim.tracing import first_tensor

WIDTH, HEADS, FRAMES = 32, 4, 6
ROTATION = {"rope_cos": torch.ones(1, 5, 8), "rope_sin": torch.zeros(1, 5, 8)}


class Scaled(nn.Module):
    """Queries and keys that are normalized, with a scale for each head, and no factor on their products."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.to_qkv, self.to_out = HEADS, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = RMSNorm(), RMSNorm()

    def forward(self, x):
        q, k, v = self.to_qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (self.q_norm(q) @ self.k_norm(k).mT).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(HEADS, 1, WIDTH // HEADS))

    def forward(self, x):
        return nn.functional.normalize(x, dim=-1) * self.gamma


@pytest.mark.parametrize(
    ("attention", "shape", "arguments", "expected"),
    [
        (nest.Attention(WIDTH, HEADS), (1, 4, 5, WIDTH), {}, {"by_channel": True}),
        (cait.TalkingHeadAttn(WIDTH, HEADS), (1, 5, WIDTH), {}, {"between_heads": ("proj_l", "proj_w")}),
        (
            eva.EvaAttention(WIDTH, HEADS, norm_layer=nn.LayerNorm, qkv_fused=False),
            (1, 5, WIDTH),
            {},
            {"before_out": "norm"},
        ),
        (
            gemma4_vit.Gemma4Attention(WIDTH, HEADS, WIDTH // HEADS),
            (1, 5, WIDTH),
            ROTATION,
            {"scale": 1.0, "norms": ("q_norm", "k_norm", "v_norm")},
        ),
        (Scaled(), (1, 5, WIDTH), {}, {"scale": 1.0, "norms": ("q_norm", "k_norm")}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@torch.no_grad()
def test_causal_attention_is_that_of_the_frames_so_far(attention, shape, arguments, expected):
    kind = find_kind(attention, shape, arguments)
    found = find_causal(kind, attention, WIDTH)
    assert {option: getattr(found.kind, option) for option in expected} == expected
    twin, x, width = random_twin(attention), torch.randn(2, FRAMES, WIDTH, dtype=torch.float64), 3
    mixed = found(twin, x, width)
    for t in range(FRAMES):
        so_far = x[:, max(0, t + 1 - width) : t + 1]
        assert torch.allclose(mixed[:, t], first_tensor(kind(twin, so_far))[:, -1], atol=1e-6)
