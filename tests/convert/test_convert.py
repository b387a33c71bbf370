"""Converted official checkpoints score the same as the official code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from official import (
    BACKBONES,
    CLASSES,
    DEPTH,
    WIDTH,
    close,
    expected,
    official,
    open_clip_model,
    scores,
    tf_clip,
    timm_clip,
)
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn

from peft_aim.convert import from_official, same_equations
from peft_aim.convert.place_for_head import with_place_for_head
from peft_aim.tracing.example import image_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize(("temporal_adapters", "scale"), [(1, 0.5), (1, 1.0), (2, 0.5), (2, 1.0)])
@pytest.mark.parametrize("name", BACKBONES)
def test_scores_equal_those_of_the_official_model(name, temporal_adapters, scale, dtype):
    layout, build = BACKBONES[name]
    state, clips = official(layout, temporal_adapters, dtype), zoo.make_clips().to(dtype)
    model = from_official({"state_dict": state, "meta": {"epoch": 30}}, build(state), scale)
    assert not any(module.training for module in model.modules())
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    double = {key: tensor.double() for key, tensor in state.items()}
    assert close(scores(model, clips), expected(double, clips.double(), layout, scale), tolerance)
    config = model.peft_config["default"]
    assert (config.num_frames, config.num_labels, config.scale) == (zoo.FRAMES, CLASSES, scale)
    assert config.temporal_adapters == temporal_adapters


@pytest.mark.parametrize("name", BACKBONES)
def test_converted_adapters_load_onto_a_fresh_backbone(name, tmp_path):
    layout, build = BACKBONES[name]
    state, clips = official(layout, 2), zoo.make_clips()
    torch.save(
        {"state_dict": {f"module.{k}": t for k, t in state.items()}, "meta": {"time": "now"}}, tmp_path / "a.pth"
    )
    model = from_official(tmp_path / "a.pth", build(state))
    model.save_pretrained(tmp_path / "adapter")
    fresh = build(state)
    # the adapter has its own final norm
    again = PeftModel.from_pretrained(with_place_for_head(fresh), tmp_path / "adapter").eval()
    assert torch.equal(scores(again, clips), scores(model, clips))
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert len(names) == DEPTH * 4 * 4 + 1 + 2 + 2 and all(".aim_" in name for name in names)


def test_bare_state_dicts_are_accepted():
    state = official("clip")
    assert from_official(state, timm_clip(state)).peft_config["default"].num_labels == CLASSES


def test_numpy_scalars_in_the_metadata_are_ignored(tmp_path):
    state = official("clip")
    meta = {
        "epoch": 30,
        "hook_msgs": {"best_score": np.float64(0.839), "best_ckpt": "epoch_29.pth"},
        "iter": np.int64(5),
    }
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "a.pth")
    allowed = set(torch.serialization.get_safe_globals())
    assert from_official(tmp_path / "a.pth", timm_clip(state)).peft_config
    assert set(torch.serialization.get_safe_globals()) == allowed


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_backbones_in_half_precision_are_accepted(half):
    state, clips = official("clip"), zoo.make_clips()
    rounded = timm_clip({key: tensor.to(half).float() for key, tensor in state.items()})
    assert close(scores(from_official(state, rounded), clips), expected(state, clips, "clip"), 0.05)
    low = timm_clip({key: tensor.to(half) for key, tensor in state.items()})
    model = from_official(state, low)
    assert close(scores(model, clips.to(half)).float(), expected(state, clips, "clip"), 0.1)


def test_rejected_backbones_keep_their_mode_and_trainable_parameters():
    state = official("clip")
    backbone = timm_clip(state, "").train()
    backbone.norm.weight.requires_grad_(False)
    before = {name: (t.clone(), t.requires_grad) for name, t in backbone.named_parameters()}
    with pytest.raises(ValueError, match="QuickGELU"):
        from_official(state, backbone)
    assert all(module.training for module in backbone.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1]


def test_the_backbones_number_of_heads_is_accepted_if_64_does_not_divide_the_width(monkeypatch):
    monkeypatch.setattr(same_equations, "HEAD_WIDTH", 48)
    state = official("clip")
    assert from_official(state, timm_clip(state, num_heads=4)).peft_config


# The slot for a head.


def test_models_with_a_slot_for_a_head_are_returned_unchanged():
    for backbone in (zoo.build("timm_vit"), zoo.build("hf_vit"), tf_clip(official("clip"))):
        assert with_place_for_head(backbone) is backbone


@pytest.mark.parametrize("whole", [True, False])
def test_a_bare_projection_at_the_end_is_removed(whole):
    model = open_clip_model(official("clip"))
    images = torch.randn(2, 3, zoo.SIZE, zoo.SIZE)
    before, matrix = model.visual(images), model.visual.proj.detach().clone()
    tower = with_place_for_head(model if whole else model.visual)
    assert tower[0] is model.visual and image_size(tower) == (zoo.SIZE, zoo.SIZE) and not tower.training
    assert torch.allclose(tower(images) @ matrix, before, atol=1e-5)
    assert torch.equal(with_place_for_head(model.visual)(images), tower(images))  # when called again


def test_the_image_size_is_preserved():
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = timm_clip(official("clip"), dynamic_img_size=True)
            self.matrix = nn.Parameter(torch.randn(WIDTH, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.stem(x) if self.matrix is None else self.stem(x) @ self.matrix

    tower = Tower()
    tower.image_size = (40, 48)
    assert image_size(with_place_for_head(tower)) == (40, 48)
    assert tower.matrix is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda s: tf_clip(s).vision_model,
            r"CLIPVision\w+ returns BaseModelOutputWithPooling, which is neither the class token after its final",
        ),
        (
            lambda s: open_clip_model(s, pool_type="avg").visual,
            r"VisionTransformer returns a tensor \(1, 24\), which is neither the class token",
        ),
    ],
)
def test_towers_with_other_outputs_are_rejected(build, message):
    model = build(official("clip"))
    before = model.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        with_place_for_head(model)
    assert model.state_dict().keys() == before
