from __future__ import annotations

import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from benchmarks.methods import rivals

CLASSES, FRAMES = 3, 4
RIVALS = {
    "frozen": lambda model: rivals.frozen(model, CLASSES),
    "aim": lambda model: rivals.aim(model, CLASSES, FRAMES),
    "lora": lambda model: rivals.lora(model, CLASSES, 6_000),
    "full": lambda model: rivals.full(model, CLASSES),
    "divided": lambda model: rivals.divided(model, CLASSES, FRAMES),
}


@pytest.fixture
def backbone() -> nn.Module:
    return VisionTransformer(32, 8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, num_classes=5).eval()


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.randn(2, FRAMES, 3, 32, 32)


@pytest.mark.parametrize("name", RIVALS)
def test_before_training_scores_are_those_of_the_backbone_averaged_over_frames(name, backbone, clips):
    model = RIVALS[name](copy.deepcopy(backbone)).eval()
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES]
    backbone.head = heads[-1]
    assert torch.allclose(model(clips), rivals.OverFrames(backbone)(clips), atol=1e-6)


@pytest.mark.parametrize("name", RIVALS)
def test_gradients_reach_all_trainable_parameters_and_nothing_else(name, backbone, clips):
    of_backbone = set(dict(backbone.named_parameters()))
    model = RIVALS[name](copy.deepcopy(backbone))
    randomize(model)
    model(clips).square().sum().backward()
    given = {n: p.grad is not None and bool(p.grad.any()) for n, p in model.named_parameters()}
    assert given == {n: p.requires_grad for n, p in model.named_parameters()}
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    tuned = [n for n in trainable if n.removeprefix("model.").replace(".block.", ".") in of_backbone]
    assert len(tuned) == (len(of_backbone) if name in ("full", "divided") else 0)


def test_only_temporal_attention_is_sensitive_to_the_order_of_frames(backbone, clips):
    for name, build in RIVALS.items():
        model = build(copy.deepcopy(backbone)).eval()
        randomize(model)
        blind = torch.allclose(model(clips), model(clips.flip(1)), atol=1e-5)
        assert blind == (name not in ("aim", "divided")), name


def test_divided_attention_mixes_neither_clips_nor_spatial_positions(backbone, clips):
    model = rivals.divided(backbone, CLASSES, FRAMES).eval()
    randomize(model)
    others = torch.cat([clips[:1], torch.randn_like(clips[1:])])
    assert torch.allclose(model(clips)[0], model(others)[0], atol=1e-5)
    block, tokens = model.model.blocks[0], torch.randn(FRAMES, 5, 32)
    block.block = nn.Identity()
    changed = tokens.clone()
    changed[2, 3] *= -1
    moved = (block(changed) - block(tokens)).abs().amax(-1) > 1e-4
    assert moved[:, 3].all()  # in all frames
    assert not moved[:, [0, 1, 2, 4]].any()


def test_divided_attention_needs_pre_norm_blocks():
    with pytest.raises(ValueError, match="Use a backbone with pre-norm blocks"):
        rivals.divided(VisionTransformer(32, 8, embed_dim=32, depth=1, num_heads=2, block_fn=PostNormBlock), 3, FRAMES)


@pytest.mark.parametrize("parameters", [2_000, 6_000, 20_000])
def test_the_rank_of_lora_is_nearest_to_the_requested_number_of_parameters(parameters, backbone):
    of_rank_one = 2 * (32 + 96 + 32 + 32 + 32 + 64 + 64 + 32)
    found = rivals.trained_parameters(rivals.lora(backbone, CLASSES, parameters))
    assert abs(found - parameters) <= of_rank_one / 2


def test_counts_of_trainable_parameters(backbone):
    assert rivals.trained_parameters(rivals.frozen(copy.deepcopy(backbone), CLASSES)) == 33 * CLASSES
    spatial = sum(p.numel() for p in backbone.parameters()) + 33 * (CLASSES - 5)
    assert rivals.trained_parameters(rivals.full(copy.deepcopy(backbone), CLASSES)) == spatial
    temporal = 2 * (2 * 32 + 4 * 32 * 33 + 32 * 33) + FRAMES * 32
    assert rivals.trained_parameters(rivals.divided(backbone, CLASSES, FRAMES)) == spatial + temporal


def test_fresh_lists_the_newly_initialized_parameters(backbone):
    for build, more in ((RIVALS["full"], 0), (RIVALS["divided"], 2 * (32 * 33) + FRAMES * 32)):
        model = build(copy.deepcopy(backbone))
        assert sum(parameter.numel() for parameter in model.fresh) == 33 * CLASSES + more
        assert {id(p) for p in model.fresh} <= {id(p) for p in model.parameters()}


class PostNormBlock(nn.Module):
    """Block with residual branches ``x + norm(part(x))``."""

    def __init__(self, dim: int, num_heads: int, *args: object, **options: object) -> None:
        super().__init__()
        self.attn, self.norm1 = nn.MultiheadAttention(dim, num_heads, batch_first=True), nn.LayerNorm(dim)
        self.mlp, self.norm2 = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)), nn.LayerNorm(dim)

    def forward(self, x, **further):
        x = x + self.norm1(self.attn(x, x, x)[0])
        return x + self.norm2(self.mlp(x))


def randomize(model: nn.Module) -> None:
    """Randomize all trainable weights, so that none is zero as the last layer of each branch is at the start."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
