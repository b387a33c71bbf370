"""Blocks that take tokens with the sequence first, (N, B, D); the laws of two such models are in test_laws.py."""

from __future__ import annotations

import pytest
import sequence_first
import torch
import zoo
from peft import get_peft_model
from torch import nn

from peft_aim import AIMConfig
from peft_aim.attention.kinds import in_words
from peft_aim.backbone.inspection import inspect_backbone
from peft_aim.layers.adapter import drop_path
from peft_aim.tracing import Layout

BLOCKS = [
    sequence_first.ResidualAttentionBlock,
    sequence_first.OwnBlock,
    sequence_first.PostNormBlock,
    sequence_first.BatchFirstInside,
]


def build(block: type, class_token: bool = True, patch: int = 8) -> nn.Module:
    torch.manual_seed(0)
    model = sequence_first.ClipImageTower(zoo.SIZE, patch, block=block, class_token=class_token).eval()
    zoo.randomize(model)
    return model


@torch.no_grad()
@pytest.mark.parametrize("class_token", [True, False])  # 17 tokens, or 16, which two images might split into groups
@pytest.mark.parametrize("block", BLOCKS)
def test_the_batch_axis_is_found(block, class_token):
    found = inspect_backbone(build(block, class_token))
    assert [anatomy.tokens for anatomy in found.blocks.values()] == [Layout(batch=1)] * 2
    assert found.entry_tokens == {"ln_pre": Layout()}


def test_the_kind_of_temporal_attention():
    blocks = [next(iter(inspect_backbone(build(block)).blocks.values())) for block in BLOCKS]
    multihead = "its own forward with query, key and value"
    own = "its own forward on the tokens alone, with the sequence first"
    assert [in_words(anatomy.attend) for anatomy in blocks] == [multihead, own, own, multihead]


def test_the_summary_says_it(capsys):
    for names in ({}, {"layers_to_transform": [1]}):
        get_peft_model(build(sequence_first.OwnBlock), AIMConfig(**names)).print_adapted_blocks()
        said = [line for line in capsys.readouterr().out.splitlines() if "sequence first, (N, B, D)" in line]
        blocks = "resblocks.0, resblocks.1" if names else "resblocks.0 to resblocks.1 (2)"
        assert said == [f"Tokens with the sequence first, (N, B, D), in {blocks}"]
    get_peft_model(zoo.build("timm_vit"), AIMConfig()).print_adapted_blocks()
    assert "sequence first" not in capsys.readouterr().out


@torch.no_grad()
@pytest.mark.parametrize("temporal", ["attention", "conv"])
@pytest.mark.parametrize("block", BLOCKS)
def test_clips_never_mix_and_frames_do(block, temporal):
    config = AIMConfig(num_frames=zoo.FRAMES, init_weights=False, temporal=temporal, spatial=False, joint=False)
    model, clips = get_peft_model(build(block), config).eval(), zoo.make_clips(batch=3)
    changed, reversed_ = clips.clone(), model(clips.flip(1))
    changed[1] = torch.randn_like(changed[1])
    before, after = model(clips), model(changed)
    assert torch.equal(before[[0, 2]], after[[0, 2]]) and not torch.allclose(before[1], after[1])
    assert not torch.allclose(before, reversed_, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("block", BLOCKS)
def test_a_fresh_adapter_changes_nothing_and_dropped_paths_are_those_of_images(block):
    model, clips = build(block), zoo.make_clips()
    before = zoo.frame_average(model, clips)
    adapted = get_peft_model(model, AIMConfig(num_frames=zoo.FRAMES, drop_path=0.5))
    assert torch.equal(adapted.eval()(clips), before)
    assert torch.allclose(adapted.train()(clips), before, atol=1e-5)  # without torch's fast path


def test_paths_are_dropped_by_image():
    torch.manual_seed(0)
    kept = drop_path(torch.ones(5, 32, 3), rate=0.5, batch=1)
    assert all(kept[:, image].unique().numel() == 1 for image in range(32))
    assert kept.unique().tolist() == [0, 2]


@torch.no_grad()
def test_a_user_may_name_the_parts():
    names = {"norm1_module": "norm1", "attention_module": "attn", "norm2_module": "norm2", "mlp_module": "mlp"}
    model = get_peft_model(build(sequence_first.OwnBlock), AIMConfig(num_frames=2, **names))
    assert len(model.peft_config["default"].branches) == 3  # with the norm before the first block


@torch.no_grad()
def test_outputs_with_the_sequence_first_are_rejected():
    model = build(sequence_first.OwnBlock, class_token=False)
    model.forward = model.tokens
    adapted = get_peft_model(model, AIMConfig(num_frames=2))
    with pytest.raises(
        ValueError,
        match=r"returned a tensor \(16, 4, 32\) for 4 images .* Its leading axis is not the batch, so it cannot be",
    ):
        adapted(zoo.make_clips(batch=2, frames=2))  # 16 tokens would be a multiple of 4 images


@pytest.mark.parametrize(("layers", "axis"), [(2, 1), (8, 1), (8, 2)])
def test_outputs_of_several_layers_are_rejected_when_the_adapter_is_added(layers, axis):
    """With 8 frames, the 8 layers of BridgeTower's output would be averaged."""
    model = build(sequence_first.OwnBlock, class_token=False)
    tokens = model.tokens
    model.forward = lambda images: torch.stack([tokens(images).transpose(0, 2 - axis)] * layers)
    with pytest.raises(ValueError, match=r"returns a tensor \(.*\) for 2 images, whose leading axis is not the batch"):
        get_peft_model(model, AIMConfig(num_frames=8))
