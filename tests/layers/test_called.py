"""Weights of adapters belong to modules that are called: what shards or offloads a model moves them only then."""

from __future__ import annotations

import pytest
import torch
import zoo
from peft import get_peft_model
from timm.optim import create_optimizer_v2

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


@pytest.mark.parametrize("name", ["timm_vit", "timm_swin", "hf_vit"])
def test_optimizers_of_timm_do_not_decay_embeddings(name):
    backbone = zoo.build(name)
    own = getattr(backbone, "no_weight_decay", set)()
    options = {"temporal_embedding": "blocks", "temporal_conv": True, "num_labels": 3}
    model = get_peft_model(backbone, AIMConfig(num_frames=zoo.FRAMES, **options)).requires_grad_()
    skipped = model.no_weight_decay()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert skipped <= {*names.values()}
    optimizer = create_optimizer_v2(model, opt="adamw", weight_decay=0.1)
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert not [key for key in decayed if "aim_" in key and ("embedding" in key or "conv" in key)]
    assert not [key for key in decayed if key.replace(".base_layer", "").removeprefix("base_model.model.") in own]
    assert any("aim_temporal_down" in key for key in decayed)
