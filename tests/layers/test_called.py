"""Weights of adapters belong to modules that are called: what shards or offloads a model moves them only then."""

from __future__ import annotations

import pytest
import torch
import zoo
from peft import get_peft_model

from peft_aim import AIMConfig
from peft_aim.saving import adapter_weights


@torch.no_grad()
@pytest.mark.parametrize("options", [{"temporal_embedding": "blocks"}, {}], ids=str)
@pytest.mark.parametrize("name", ["timm_clip", "hf_vit", "timm_swin"])
def test_every_module_with_weights_of_an_adapter_is_called(name, options):
    everything = {"temporal_conv": True, "temporal_adapters": 2, "final_norm": True, "num_labels": 3, **options}
    model = get_peft_model(zoo.build(name), AIMConfig(num_frames=zoo.FRAMES, **everything)).eval()
    trained = {id(tensor): key for key, tensor in adapter_weights(model, "default").items()}
    called = set()
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: called.update(map(id, module._parameters.values())))
    model(zoo.make_clips())
    assert not [key for ident, key in trained.items() if ident not in called]
