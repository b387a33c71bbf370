"""Only complete adapters are saved: a state dict that lacks weights is an error with their names."""

from __future__ import annotations

import re

import pytest
import torch
import zoo
from peft import get_peft_model, get_peft_model_state_dict

from peft_aim import AIMConfig


def adapt():
    return get_peft_model(zoo.build("timm_vit"), AIMConfig(num_frames=zoo.FRAMES, modules_to_save=["norm"]))


def without(*parts):
    return lambda weights: {key: t for key, t in weights.items() if not any(part in key for part in parts)}


def changed(part, change):
    return lambda weights: {key: change(t) if part in key else t for key, t in weights.items()}


FAULTS = {
    "missing (39 of 39): blocks.0.aim_temporal_embedding, blocks.0.aim_temporal_down.weight": lambda weights: {"a": 1},
    "missing (1 of 39): blocks.0.aim_temporal_embedding\n": without("temporal_embedding"),
    "missing (2 of 39): norm.weight, norm.bias\n": without("modules_to_save"),
    "without content (2 of 39): blocks.1.aim_joint_up.weight, blocks.1.aim_joint_up.bias\n": changed(
        "1.aim_joint_up", lambda tensor: tensor.to("meta")
    ),
    "of another shape (1 of 39): blocks.2.aim_spatial_up.weight\n": changed(
        "2.aim_spatial_up.default.weight", torch.flatten
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_incomplete_state_dicts_are_not_saved(message, tmp_path):
    model = adapt()
    with pytest.raises(ValueError, match=re.escape(message)):
        model.save_pretrained(tmp_path, state_dict=FAULTS[message](model.state_dict()))
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module.", "_orig_mod."])
def test_the_names_of_wrappers_do_not_matter(wrapper, tmp_path):
    model = adapt()
    wrapped = {key.replace("blocks.", f"{wrapper}blocks."): tensor for key, tensor in model.state_dict().items()}
    expected, found = get_peft_model_state_dict(model), get_peft_model_state_dict(model, state_dict=wrapped)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
