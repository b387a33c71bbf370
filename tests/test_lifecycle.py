"""The life cycle of adapters, with the functions of PEFT and transformers."""

from __future__ import annotations

import copy
import pickle

import peft
import pytest
import torch
import transformers as tf
import zoo
from packaging import version
from peft import (
    AutoPeftModel,
    PeftModel,
    get_layer_status,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import nn
from transformers.integrations.peft import MIN_PEFT_VERSION

from peft_aim import AIMConfig, AIMModel
from peft_aim.layers.block import AIMLayer
from peft_aim.layers.head import AIMHead


def config(**options: object) -> AIMConfig:
    return AIMConfig(**{"num_frames": zoo.FRAMES, "init_weights": False, **options})


def adapt(name: str, **options: object) -> PeftModel:
    return get_peft_model(zoo.build(name), config(**options)).eval()


@pytest.fixture
def clips() -> torch.Tensor:
    return zoo.make_clips()


DIFFERENT = {
    "long": {"num_frames": 16, "num_labels": 7},
    "narrow": {"bottleneck_ratio": 0.125, "id2label": {0: "push", 1: "pull"}},
    "spatial": {"temporal": False, "joint": False, "temporal_embedding": False},
    "two": {"temporal_adapters": 2, "scale": 1.0, "modules_to_save": ["norm"]},
    "top": {"layers_to_transform": [2], "num_labels": 3},
    "probe": {"spatial": False, "temporal": False, "joint": False, "temporal_embedding": False, "num_labels": 4},
}


@torch.no_grad()
def test_different_adapters_share_a_backbone(clips, tmp_path):
    """Each scores the same as alone, in whatever order they are switched, saved and loaded."""
    alone = {name: adapt("timm_vit", **options) for name, options in DIFFERENT.items()}
    expected = {name: model(clips) for name, model in alone.items()}
    for name, model in alone.items():
        model.save_pretrained(tmp_path / name)
    backbone = zoo.build("timm_vit")
    untouched = zoo.frame_average(backbone, clips)

    model = PeftModel.from_pretrained(backbone, tmp_path / "long", adapter_name="long")
    for name in list(DIFFERENT)[1:]:
        model.load_adapter(tmp_path / name, name)
    for name in [*DIFFERENT, *reversed(DIFFERENT)]:
        model.set_adapter(name)
        assert torch.equal(model(clips), expected[name]), name
        assert model(clips).shape[1] == (model.peft_config[name].num_labels or 5)
        with model.disable_adapter():
            assert torch.equal(model(clips), untouched)

    model.save_pretrained(tmp_path / "all")
    for name in DIFFERENT:
        again = PeftModel.from_pretrained(zoo.build("timm_vit"), tmp_path / "all" / name)
        assert torch.equal(again(clips), expected[name]), name


@torch.no_grad()
def test_class_names_are_saved_with_the_adapter(tmp_path):
    adapt("timm_vit", id2label={0: "push", 1: "pull"}).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(zoo.build("timm_vit"), tmp_path)
    assert loaded.peft_config["default"].id2label == {0: "push", 1: "pull"}


def test_only_the_active_adapter_is_trainable(clips):
    model = adapt("timm_vit", num_labels=2)
    model.add_adapter("other", config(num_labels=3))
    for active, inactive in (("default", "other"), ("other", "default")):
        model.set_adapter(active)
        model(clips).sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.requires_grad == (f".{active}" in key), key
            assert f".{inactive}" not in key or parameter.grad is None, key
        model.zero_grad()


def test_an_added_adapter_is_not_active(clips):
    model = adapt("timm_vit")
    before = model(clips)
    model.add_adapter("other", config(num_labels=3))
    assert torch.equal(model(clips), before)
    assert model.active_adapters == ["default"]


@torch.no_grad()
def test_deleting_the_active_adapter_activates_another(clips):
    model = adapt("timm_vit")
    before = model(clips)
    model.add_adapter("other", config(num_labels=3))
    model.set_adapter("other")
    with pytest.warns(UserWarning, match="other was active which is now deleted"):
        model.delete_adapter("other")
    assert torch.equal(model(clips), before)
    assert not any("other" in key for key in model.state_dict())
    assert set(model.peft_config) == {"default"}


@torch.no_grad()
def test_deleting_the_last_adapter_leaves_the_backbone(clips):
    backbone = zoo.build("timm_vit")
    before = zoo.frame_average(backbone, clips)
    model = get_peft_model(backbone, config()).eval()
    model.base_model.delete_adapter("default")
    assert torch.equal(model.base_model(clips), before)


def test_status():
    model = adapt("timm_vit", num_labels=2)
    status = model.get_model_status()
    assert status.adapter_model_type == "AIMModel"
    assert status.peft_types == {"default": "AIM"}
    assert status.num_adapter_layers == 3 + 1
    assert status.enabled is True and status.active_adapters == ["default"] and status.merged_adapters == []
    assert status.requires_grad == {"default": True}
    layers = model.get_layer_status()
    assert [layer.name for layer in layers] == ["model.blocks.0", "model.blocks.1", "model.blocks.2", "model.head"]
    assert [layer.module_type for layer in layers] == ["aim.AIMLayer"] * 3 + ["aim.AIMHead"]
    with model.disable_adapter():
        assert model.get_model_status().enabled is False


def test_merging_is_rejected_without_side_effects(clips):
    model = adapt("timm_vit")
    before = model(clips)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="cannot be merged: they are nonlinear.*remove it with unload"):
            merge()
        assert torch.equal(model(clips), before)
    with pytest.raises(ValueError, match="cannot be merged"):
        model.base_model.model.blocks[0].merge()


def test_several_active_adapters_are_rejected():
    model = adapt("timm_vit")
    model.add_adapter("other", config())
    with pytest.raises(ValueError, match="one adapter at a time"):
        model.base_model.set_adapter(["default", "other"])


@torch.no_grad()
def test_unload_also_removes_modules_to_save(clips):
    backbone = zoo.build("timm_vit")
    untouched, before = repr(backbone), zoo.frame_average(backbone, clips)
    model = get_peft_model(backbone, config(modules_to_save=["norm"], num_labels=2))
    model.base_model.model.norm.modules_to_save["default"].weight.data.mul_(2)
    assert repr(model.unload()) == untouched
    assert torch.equal(zoo.frame_average(backbone, clips), before)
    get_peft_model(backbone, config())  # it can be adapted again, without a warning


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm_vit", "hf_clip", "open_clip_vit"])
def test_copies_and_pickles_are_independent(name, clips):
    model = adapt(name)
    expected = zoo.scores(model(clips))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(zoo.scores(twin(clips)), expected)
        for parameter in twin.parameters():
            parameter.data.zero_()
        twin.unload()
        assert torch.equal(zoo.scores(model(clips)), expected)


@torch.no_grad()
def test_low_cpu_mem_usage_loads_the_same(clips, tmp_path):
    model = adapt("timm_vit", num_labels=2)
    model.save_pretrained(tmp_path)
    backbone = zoo.build("timm_vit")
    loaded = PeftModel.from_pretrained(backbone, tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(loaded(clips), model(clips))
    loaded.load_adapter(tmp_path, "again", low_cpu_mem_usage=True)
    loaded.set_adapter("again")
    assert torch.equal(loaded(clips), model(clips))


@pytest.mark.parametrize("autocast", [True, False])
def test_autocast_adapter_dtype(autocast):
    backbone = zoo.build("timm_vit").bfloat16()
    model = get_peft_model(backbone, config(num_labels=2), autocast_adapter_dtype=autocast)
    wanted = torch.float32 if autocast else torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {wanted}


# Injection without a PeftModel, and transformers' integration of PEFT.


@torch.no_grad()
def test_injected_adapters_score_the_same_as_in_a_peft_model(clips):
    model = adapt("timm_vit", num_labels=2)
    weights = {k.removeprefix("base_model.model."): t for k, t in get_peft_model_state_dict(model).items()}
    for options in ({}, {"state_dict": weights}):
        injected = inject_adapter_in_model(config(num_labels=2), zoo.build("timm_vit"), **options)
        result = set_peft_model_state_dict(injected, weights)
        assert not result.unexpected_keys
        assert torch.equal(injected(clips), model(clips))
    assert get_model_status(injected).num_adapter_layers == len(get_layer_status(injected)) == 4


FITS = version.parse(peft.__version__) >= version.parse(MIN_PEFT_VERSION)


@pytest.fixture
def integration(monkeypatch):
    """Allow transformers' integration of PEFT to use this PEFT, even if it requires a newer one."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", peft.__version__)


def test_versions_with_which_transformers_loads_adapters(saved_backbone):
    """As in README: transformers up to 5.23 with peft 0.21, transformers from 5.24 on with peft 0.22."""
    released_together = version.parse(tf.__version__) < version.parse("5.24")
    assert (released_together or version.parse(peft.__version__) >= version.parse("0.22")) == FITS
    model = load_backbone(saved_backbone)
    untouched = repr(model)
    if FITS:
        model.add_adapter(config(), "aim")
        assert get_model_status(model).peft_types == {"aim": "AIM"}
    else:
        with pytest.raises(ValueError, match=rf"please use a version >= {MIN_PEFT_VERSION}"):
            model.add_adapter(config(), "aim")
        assert repr(model) == untouched


@pytest.fixture
def saved_backbone(tmp_path) -> str:
    zoo.build("hf_vit").save_pretrained(tmp_path / "backbone")
    return str(tmp_path / "backbone")


def load_backbone(folder: str) -> nn.Module:
    return tf.ViTForImageClassification.from_pretrained(folder).eval()


@torch.no_grad()
def test_transformers_loads_adapters(clips, tmp_path, saved_backbone, integration):
    model = get_peft_model(load_backbone(saved_backbone), config(num_labels=7)).eval()
    expected = model(clips).logits
    model.save_pretrained(tmp_path / "adapter")

    by_auto = AutoPeftModel.from_pretrained(tmp_path / "adapter").eval()
    assert isinstance(by_auto.base_model, AIMModel)
    assert torch.equal(by_auto(clips).logits, expected)

    by_class = tf.ViTForImageClassification.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(by_class(clips).logits, expected)

    native = load_backbone(saved_backbone)
    before = zoo.frame_average(native, clips)
    native.load_adapter(str(tmp_path / "adapter"), "seven")
    native.set_adapter("seven")
    assert torch.equal(native(clips).logits, expected)
    native.disable_adapters()
    assert torch.equal(native(clips).logits, before)
    native.enable_adapters()
    native.save_pretrained(tmp_path / "by_transformers")
    again = PeftModel.from_pretrained(load_backbone(saved_backbone), tmp_path / "by_transformers").eval()
    assert torch.equal(again(clips).logits, expected)


def test_transformers_adds_switches_and_deletes_adapters(clips, saved_backbone, integration):
    model = load_backbone(saved_backbone)
    before = zoo.frame_average(model, clips)
    model.add_adapter(config(num_labels=7), "seven")
    with pytest.warns(UserWarning, match="multiple adapters"):  # PEFT's warning when there is one already
        model.add_adapter(config(num_labels=3, num_frames=2), "three")
    for name, classes in (("seven", 7), ("three", 3)):
        model.set_adapter(name)
        assert model(clips).logits.shape == (2, classes)
        assert model.active_adapters() == [name]
    model.set_adapter("seven")
    model.delete_adapter("three")
    model(clips, labels=torch.tensor([6, 0])).loss.backward()
    with torch.no_grad():
        model.disable_adapters()
        assert torch.equal(model(clips).logits, before)


def test_names_are_matched_as_in_other_peft_methods():
    backbone = zoo.build("timm_vit")
    cases = {
        "blocks.0 blocks.2": {"target_modules": ["blocks.0", "blocks.2"]},
        "blocks.1": {"target_modules": r".*\.1"},
        "blocks.1 blocks.2": {"exclude_modules": ["blocks.0"]},
        "blocks.2": {"exclude_modules": r"blocks\.[01]"},
        "blocks.0": {"layers_to_transform": 0},
        "blocks.0 blocks.1": {"target_modules": r"blocks\.\d", "layers_to_transform": [0, 1]},
    }
    for expected, options in cases.items():
        model = get_peft_model(backbone, config(temporal_embedding=False, **options))
        names = [name for name, module in model.base_model.model.named_modules() if isinstance(module, AIMLayer)]
        assert " ".join(names) == expected
        model.unload()


def test_the_embedding_stays_at_the_first_block():
    """As in the paper, whichever blocks have adapters."""
    model = adapt("timm_vit", layers_to_transform=[2])
    first, last = model.base_model.model.blocks[0], model.base_model.model.blocks[2]
    assert "default" in first.aim_temporal_embedding and not first.aim_spatial_up
    assert "default" in last.aim_spatial_up and not last.aim_temporal_embedding


def test_a_head_can_replace_an_identity(clips):
    backbone = zoo.build("timm_vit")
    backbone.reset_classifier(0)
    model = get_peft_model(backbone, config(num_labels=6))
    assert isinstance(model.base_model.model.head, AIMHead)
    assert model(clips).shape == (2, 6)


@torch.no_grad()
def test_numbers_are_not_rounded_by_autocast(clips):
    """In bfloat16, numbers around 2000 are 8 apart."""
    model = adapt("timm_vit", num_labels=1, problem_type="regression")
    head = model.base_model.model.head.aim_head["default"]
    head.bias.fill_(2003.0)
    head.weight.mul_(1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(clips)
    assert found.dtype == torch.float32 and torch.allclose(found, model(clips), atol=0.1)
