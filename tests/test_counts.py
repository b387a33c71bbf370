"""Numbers of trainable parameters equal the paper's exactly."""

from __future__ import annotations

import pytest
import timm
import torch
import transformers as tf
from peft import get_peft_model

from peft_aim import AIMConfig

B16, L14 = "vit_base_patch16_clip_224", "vit_large_patch14_clip_224"


@pytest.mark.parametrize(
    ("name", "frames", "classes", "temporal_adapters", "expected"),
    [
        (B16, 8, 400, 1, 10_966_672),
        (B16, 8, 174, 2, 14_343_342),
        (L14, 32, 400, 1, 38_285_712),
        (L14, 8, 174, 2, 50_643_118),
    ],
)
def test_timm_clip(name, frames, classes, temporal_adapters, expected):
    with torch.device("meta"):
        backbone = timm.create_model(name, num_classes=0)
    config = AIMConfig(num_frames=frames, num_labels=classes, temporal_adapters=temporal_adapters, final_norm=True)
    assert get_peft_model(backbone, config).get_nb_trainable_parameters()[0] == expected


def test_transformers_clip():
    vision = {"hidden_size": 768, "intermediate_size": 3072, "patch_size": 16}
    with torch.device("meta"):
        backbone = tf.CLIPForImageClassification(tf.CLIPConfig(vision_config=vision, num_labels=1000))
    config = AIMConfig(num_frames=8, num_labels=400, final_norm=True)
    assert get_peft_model(backbone, config).get_nb_trainable_parameters()[0] == 10_966_672
