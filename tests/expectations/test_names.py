"""Adapters and modules may have any names, also each other's."""

from __future__ import annotations

import copy

import pytest
import torch
from expectations.adapted import BEFORE_022, adapt, build, config, inside, keys_of, same
from peft import PeftModel, get_peft_model_state_dict
from torch import nn

from peft_aim import AIMConfig


def test_adapter_names_within_each_other_do_not_mix():
    options = {"num_labels": 3, "modules_to_save": ["norm"]}
    model = adapt(**options)
    alone = get_peft_model_state_dict(model)
    for name in ("default2", "other_default", "foodefault_bar", "efaul"):
        model.add_adapter(name, config(**options))
    assert same(get_peft_model_state_dict(model), alone)
    assert get_peft_model_state_dict(model, adapter_name="efaul").keys() == alone.keys()


@pytest.mark.parametrize("name", ["blocks", "0", "model", "aim_spatial_up"])
def test_an_adapter_may_be_named_like_a_module(name, clips, tmp_path):
    options = {"num_labels": 3, "modules_to_save": ["patch_embed"]}
    model = adapt("timm_vit", name, **options)
    usual = get_peft_model_state_dict(adapt("timm_vit", **options))
    assert get_peft_model_state_dict(model, adapter_name=name).keys() == usual.keys()
    model.save_pretrained(tmp_path)
    for loaded_as in (name, "another"):
        loaded = PeftModel.from_pretrained(build("timm_vit"), tmp_path / name, adapter_name=loaded_as)
        assert torch.equal(loaded(clips), model(clips))


@pytest.mark.parametrize("name", ["blocks", "head", "model", "patch_embed"])
def test_saving_is_complete_beside_an_adapter_named_like_a_module_or_raises_an_error(name):
    model = adapt(num_labels=3)
    alone = get_peft_model_state_dict(model)
    model.add_adapter(name, config(num_labels=3))
    if BEFORE_022:  # PEFT passes on no key that contains the name of another adapter
        with pytest.raises(ValueError, match=f"cannot be saved completely: another adapter is named '{name}'"):
            get_peft_model_state_dict(model)
        model.delete_adapter(name)
    assert same(get_peft_model_state_dict(model), alone)


def test_an_adapter_name_within_the_prefix_warns_and_loads(clips, tmp_path):
    with pytest.warns(UserWarning, match="Adapter name 'aim' should not be contained in the prefix 'aim_'"):
        model = adapt("timm_vit", "aim", num_labels=3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("timm_vit"), tmp_path / "aim", adapter_name="aim")
    assert torch.equal(loaded(clips), model(clips))
    with pytest.warns(UserWarning, match="should not be contained in the prefix"):
        loaded.add_adapter("im", config())


@pytest.mark.parametrize("name", ["aim_net", "weight_net", "bias", "default", "lora_net", "modules_to_save"])
def test_modules_may_be_named_like_parts_of_keys(name, clips, tmp_path):
    backbone = inside(name, aim_behind=nn.Linear(5, 5))
    twin = copy.deepcopy(backbone)
    model = adapt(backbone)
    assert not model.base_model.model.aim_behind.weight.requires_grad
    weights = get_peft_model_state_dict(model)
    assert weights and all(".blocks." in key and ".base_layer." not in key for key in weights)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(twin, tmp_path)(clips), model(clips))


def test_adapters_are_deleted_inside_a_module_named_like_the_prefix():
    model = adapt(inside("aim_net"))
    model.add_adapter("other", config())
    model.delete_adapter("other")
    assert keys_of(model, "other") == set()


def test_a_backbone_inside_a_module_named_like_the_prefix_has_a_fingerprint(tmp_path):
    adapt(inside("aim_net")).save_pretrained(tmp_path)
    assert AIMConfig.from_pretrained(tmp_path).backbone_fingerprint is not None


def test_modules_to_save_may_be_named_like_the_prefix_and_each_other(clips, tmp_path):
    names = ("aim_head", "aim_head2", "extra", "extra2", "2extra")
    backbone = inside("net", **{name: nn.Linear(5, 5) for name in names})
    twin = copy.deepcopy(backbone)
    model = adapt(backbone, modules_to_save=list(names))
    with torch.no_grad():
        for factor, name in enumerate(names, start=2):
            model.base_model.model.get_submodule(name).modules_to_save["default"].weight.mul_(factor)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(twin, tmp_path)(clips), model(clips))
