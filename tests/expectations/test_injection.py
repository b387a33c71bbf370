"""What PEFT expects of injection, without a PeftModel."""

from __future__ import annotations

import pytest
import torch
from expectations.adapted import build, config
from peft import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn


def inject(state_dict: dict[str, Tensor] | None = None, **options: object) -> nn.Module:
    return inject_adapter_in_model(config(**options), build("hf_vit").eval(), state_dict=state_dict)


def shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in weights.items()}


@pytest.mark.parametrize("options", [{}, {"layers_to_transform": [1], "num_labels": 3}], ids=["all", "one"])
def test_injection_by_state_dict_round_trips(options, clips):
    model = inject(**options)
    weights = get_peft_model_state_dict(model)
    for state_dict in (None, weights):
        fresh = inject(state_dict, **options)
        assert shapes(get_peft_model_state_dict(fresh)) == shapes(weights)
        assert not torch.equal(fresh(clips).logits, model(clips).logits)
        assert not set_peft_model_state_dict(fresh, weights).unexpected_keys
        assert torch.equal(fresh(clips).logits, model(clips).logits)


def test_injected_modules_to_save_are_saved_and_loaded(clips):
    options = {"num_labels": 3, "modules_to_save": ["vit.layernorm"]}
    model = inject(**options)
    model.vit.layernorm.modules_to_save["default"].weight.data.mul_(2)
    weights = get_peft_model_state_dict(model)
    assert {key for key in weights if ".aim_" not in key} == {"vit.layernorm.weight", "vit.layernorm.bias"}
    fresh = inject(**options)
    assert not set_peft_model_state_dict(fresh, weights).unexpected_keys
    assert torch.equal(fresh(clips).logits, model(clips).logits)


def test_a_state_dict_with_fewer_blocks_warns():
    weights = get_peft_model_state_dict(inject(layers_to_transform=[0]))
    with pytest.warns(RuntimeWarning, match=r"config contained these additional target modules: \['vit.layers.1'\]"):
        model = inject(weights)
    assert shapes(get_peft_model_state_dict(model)) == shapes(weights)


def test_a_state_dict_with_more_blocks_raises_an_error():
    weights = get_peft_model_state_dict(inject())
    with pytest.raises(ValueError, match="has weights for 'vit.layers.1', but this config adds none there. Leave"):
        inject(weights, layers_to_transform=[0])


@pytest.mark.xfail(reason="names of blocks begin with _orig_mod. in a compiled model", raises=ValueError, strict=True)
def test_a_compiled_model_can_be_injected():
    weights = get_peft_model_state_dict(inject())
    compiled = torch.compile(build("hf_vit"))
    inject_adapter_in_model(config(), compiled, state_dict=weights)
    found = get_peft_model_state_dict(compiled)
    assert shapes({key.removeprefix("_orig_mod."): tensor for key, tensor in found.items()}) == shapes(weights)
