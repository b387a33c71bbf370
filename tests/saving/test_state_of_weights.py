"""Weights in other forms: state dicts of earlier versions, tensors that files cannot store, builds without FSDP."""

from __future__ import annotations

import importlib.util
import re
import sys

import pytest
import torch
import zoo
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn

from peft_aim import AIMConfig
from peft_aim.saving import weights


@pytest.mark.parametrize("options", [{}, {"temporal_embedding": "blocks"}])
@pytest.mark.parametrize("name", ["timm_vit", "timm_clip"])
def test_full_state_dicts_of_earlier_versions_load(name, options):
    config = AIMConfig(num_frames=4, num_labels=2, init_weights=False, **options)
    model, other = (get_peft_model(zoo.build(name), config) for _ in range(2))
    new = model.state_dict()
    old = {re.sub(r"(embedding\.default)\.weight$", r"\1", key): tensor for key, tensor in new.items()}
    assert old.keys() != new.keys()
    other.load_state_dict(old, strict=True)
    assert all(torch.equal(tensor, new[key]) for key, tensor in other.state_dict().items())
    assert not any(key in new for key in old.keys() - new.keys())


def test_the_state_dict_of_the_base_model_is_saved_as_that_of_the_model(tmp_path):
    model = get_peft_model(zoo.build("timm_vit"), AIMConfig(num_frames=zoo.FRAMES, init_weights=False))
    model.save_pretrained(tmp_path / "own")
    model.save_pretrained(tmp_path / "given", state_dict=model.base_model.model.state_dict())
    own, given = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("own", "given"))
    assert own.keys() == given.keys() and all(torch.equal(given[name], own[name]) for name in own)


def test_weights_of_another_kind_are_named_but_not_explained(tmp_path):
    class Marked(torch.Tensor):
        pass

    model = get_peft_model(zoo.build("timm_vit"), AIMConfig(num_frames=4))
    layer = next(module for module in model.modules() if hasattr(module, "aim_temporal_down"))
    weight = layer.aim_temporal_down["default"].weight
    layer.aim_temporal_down["default"].weight = nn.Parameter(weight.detach().as_subclass(Marked))
    kind = re.escape(f"{Marked.__module__}.{Marked.__qualname__}")
    with pytest.raises(ValueError, match=rf"'default' cannot be saved: .* is no plain tensor but a {kind}. If"):
        model.save_pretrained(tmp_path)


def test_builds_without_distributed_import_the_check(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "torch.distributed.tensor", None)
    spec = importlib.util.spec_from_file_location("weights_without_distributed", weights.__file__)
    anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)
    anew.check_not_quantized("default", {"a": torch.zeros(1)})
    assert anew.SHARDED == ()
