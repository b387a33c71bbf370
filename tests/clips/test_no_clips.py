"""A batch of no clips, and a default dtype that is not the backbone's: what plain models take, adapted ones take."""

from __future__ import annotations

import pytest
import torch
import zoo
from peft import get_peft_model

from peft_aim import AIMConfig

EVERYTHING = {"temporal_conv": True, "temporal_adapters": 2, "final_norm": True, "num_labels": 3, "head_dropout": 0.5}


@pytest.mark.parametrize("embedding", ["input", "blocks"])
@pytest.mark.parametrize("name", ["timm_vit", "timm_clip", "torchvision_swin"])
def test_no_clips_have_no_scores_and_zero_gradients(name, embedding):
    config = AIMConfig(num_frames=zoo.FRAMES, temporal_embedding=embedding, **EVERYTHING)
    model = get_peft_model(zoo.build(name), config).train()
    scores = model(zoo.make_clips()[:0])
    assert scores.shape == (0, 3)
    scores.sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all(torch.equal(p.grad, torch.zeros_like(p)) for p in trained)


@pytest.fixture
def doubles_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm_vit", "hf_swin", "open_clip_vit"])
def test_the_default_dtype_does_not_matter(name, doubles_by_default):
    options = {"num_frames": zoo.FRAMES, "temporal_embedding": "blocks"}
    backbone = zoo.build(name).float()
    blocks = get_peft_model(backbone, AIMConfig(**options))
    assert {parameter.dtype for parameter in blocks.parameters()} == {torch.float32}
    assert zoo.scores(blocks(zoo.make_clips().float())).dtype == torch.float32
    torch.set_default_dtype(torch.float32)
    other = get_peft_model(zoo.build(name), AIMConfig(**options))
    found, expected = (model.base_model.model.aim_clips.inspection for model in (blocks, other))
    assert [*found.blocks] == [*expected.blocks]
