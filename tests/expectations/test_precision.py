"""What PEFT expects of dtypes and of the meta device."""

from __future__ import annotations

import pytest
import torch
import zoo
from expectations.adapted import adapt, build, config, keys_of, trainable
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import nn


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_adapters_have_the_requested_dtype(dtype, autocast, tmp_path):
    options = {"autocast_adapter_dtype": autocast}
    expected = {torch.float32 if autocast else dtype}

    def dtypes(model: nn.Module) -> set[torch.dtype]:
        return {model.get_parameter(key).dtype for key in keys_of(model, "default", "other", "filled", "loaded")}

    model = get_peft_model(build("timm_clip").to(dtype), config(num_labels=3, final_norm=True), **options)
    model.add_adapter("other", config(num_labels=3), **options)
    assert dtypes(model) == expected
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "loaded", **options)
    model.load_adapter(tmp_path, "filled", low_cpu_mem_usage=True, **options)
    assert dtypes(model) == expected
    for low_cpu_mem_usage in (False, True):
        options["low_cpu_mem_usage"] = low_cpu_mem_usage
        loaded = PeftModel.from_pretrained(build("timm_clip").to(dtype), tmp_path, **options)
        assert dtypes(loaded) == expected


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["timm_clip", "hf_vit", "open_clip_vit"])
def test_half_precision_backbones_run_and_train(name, dtype, autocast, clips):
    model = get_peft_model(build(name).to(dtype), config(), autocast_adapter_dtype=autocast).eval()
    scores = zoo.scores(model(clips.to(dtype)))
    assert scores.dtype == dtype and scores.isfinite().all()
    scores.float().sum().backward()
    assert all(model.get_parameter(key).grad.isfinite().all() for key in trainable(model))
    assert zoo.scores(model.unload()(clips[:, 0].to(dtype))).dtype == dtype


def test_adapters_on_meta_are_filled_when_loaded(clips):
    model = adapt("hf_vit", num_labels=3)
    weights = {key.removeprefix("base_model.model."): t for key, t in get_peft_model_state_dict(model).items()}

    def devices(model: nn.Module, *adapter_names: str) -> tuple[set[str], set[str]]:
        """Return the devices of the adapters and those of the backbone."""
        found = {key: parameter.device.type for key, parameter in model.named_parameters()}
        keys = keys_of(model, *adapter_names)
        return {found[key] for key in keys}, {found[key] for key in found.keys() - keys}

    empty = get_peft_model(build("hf_vit"), config(num_labels=3), low_cpu_mem_usage=True)
    empty.add_adapter("other", config(), low_cpu_mem_usage=True)
    assert devices(empty, "default", "other") == ({"meta"}, {"cpu"})
    for options in ({}, {"state_dict": weights}):
        injected = inject_adapter_in_model(config(num_labels=3), build("hf_vit"), low_cpu_mem_usage=True, **options)
        assert devices(injected, "default") == ({"meta"}, {"cpu"})
        assert not set_peft_model_state_dict(injected, weights, low_cpu_mem_usage=True).unexpected_keys
        assert devices(injected, "default") == ({"cpu"}, {"cpu"})
        assert torch.equal(injected(clips).logits, model(clips).logits)
