"""What PEFT expects of several adapters: adding, switching, deleting and disabling them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import zoo
from expectations.adapted import EVERYTHING, adapt, build, config, keys_of, same, trainable, tuner_layers
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn


def test_the_adapter_name_does_not_change_results(clips):
    found = []
    for name in ("default", "adapter", "other-name"):
        backbone = zoo.build("timm_clip")
        torch.manual_seed(3)
        model = adapt(backbone, name, **EVERYTHING)
        assert keys_of(model, name) == trainable(model)
        found.append((model(clips), {key.replace(f".{name}", ""): t for key, t in model.state_dict().items()}))
    (scores, weights), *others = found
    assert all(torch.equal(scores, other) and same(weights, state_dict) for other, state_dict in others)


def test_an_existing_adapter_name_raises_an_error():
    model = adapt(num_labels=3)
    options, before = model.peft_config["default"], copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="Adapter with name 'default' already exists"):
        model.add_adapter("default", config(bottleneck_ratio=0.5))
    assert model.peft_config["default"] is options and same(model.state_dict(), before)


def test_unknown_adapter_names_raise_an_error(clips, tmp_path):
    model = adapt()
    before = model(clips)
    with pytest.raises(ValueError, match="Adapter unknown does not exist"):
        model.delete_adapter("unknown")
    with pytest.raises(ValueError, match="Adapter unknown not found"):
        model.set_adapter("unknown")
    with pytest.raises(ValueError, match=r"supported adapter names are \['default'\] - got \['unknown'\]"):
        model.save_pretrained(tmp_path / "new", selected_adapters=["unknown"])
    assert not (tmp_path / "new").exists()
    assert model.active_adapters == ["default"] and torch.equal(model(clips), before)


def test_all_layers_switch_between_adapters_on_different_blocks():
    model = adapt(layers_to_transform=[0, 1])
    model.add_adapter("other", config(layers_to_transform=[1, 2], modules_to_save=["patch_embed"], num_labels=3))
    embedding = model.base_model.model.patch_embed

    def check(active: str) -> None:
        assert model.active_adapters == model.base_model.active_adapters == [active]
        assert [layer.active_adapters for layer in tuner_layers(model)] == [[active]] * 4
        assert embedding.active_adapters == (["other"] if active == "other" else [])
        assert trainable(model) == keys_of(model, active)

    check("default")
    for name in ("other", "default"):
        model.set_adapter(name)
        assert model.active_adapter == name
        check(name)
    for name in ("other", "default"):
        model.base_model.set_adapter([name])
        check(name)


def test_modules_to_save_are_copied_for_their_adapter_only():
    model = adapt(modules_to_save=["patch_embed"])
    model.add_adapter("other", config(modules_to_save=["fc_norm"]))
    model.add_adapter("none", config())
    modules = model.base_model.model
    assert list(modules.patch_embed.modules_to_save) == ["default"]
    assert list(modules.fc_norm.modules_to_save) == ["other"]


def containers(model: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    """Find everything that is kept by adapter, as a dict is, in the model and its layers."""
    for owner in (model, model.base_model, *tuner_layers(model)):
        for attribute in dir(owner):
            value = None if attribute.startswith("_") else getattr(owner, attribute, None)
            if callable(getattr(value, "keys", None)) and hasattr(value, "__contains__") and name in value:
                yield f"{type(owner).__name__}.{attribute}", value


@pytest.mark.filterwarnings("ignore:Adapter gone was active which is now deleted")
@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("name", ["timm_clip", "hf_vit"])
def test_a_deleted_adapter_leaves_nothing(name, active, clips):
    backbone = build(name)
    before = zoo.frame_average(backbone, clips)
    saved = {"modules_to_save": ["patch_embed" if name == "timm_clip" else "patch_embeddings"]}
    model = adapt(backbone, **EVERYTHING, **saved)
    model.add_adapter("gone", config(**EVERYTHING, **saved))
    if active:
        model.set_adapter("gone")
    for deleted, left in (("gone", ["default"]), ("default", [])):
        found = list(containers(model, deleted))
        assert {"PeftModel.peft_config", "AIMLayer.aim_settings", "AIMHead.aim_dropout"} <= {key for key, _ in found}
        model.delete_adapter(deleted)
        assert [key for key, container in found if deleted in container] == []
        assert keys_of(model, deleted) == set()
        assert model.active_adapters == left and all(layer.active_adapters == left for layer in tuner_layers(model))
        wrappers = [module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        assert wrappers and all(deleted not in wrapper._adapters for wrapper in wrappers)
        assert all(wrapper.active_adapters == left for wrapper in wrappers)
    assert torch.equal(zoo.scores(model.base_model(clips)), before)


@pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted")
def test_after_a_deletion_the_next_adapter_is_active(clips):
    model = adapt("timm_vit", "adapter0", modules_to_save=["norm"])
    model.add_adapter("adapter1", config(num_labels=3))
    model.add_adapter("adapter2", config(num_labels=4, modules_to_save=["norm"]))
    norm, expected = model.base_model.model.norm, {}
    for name in model.peft_config:
        model.set_adapter(name)
        expected[name] = model(clips)
    model.set_adapter("adapter0")
    for deleted, active, copies in (("adapter0", "adapter1", {"adapter2"}), ("adapter1", "adapter2", {"adapter2"})):
        model.delete_adapter(deleted)
        assert model.active_adapters == [active] and model.active_adapter == active
        assert model.modules_to_save == {"norm"} and set(norm.modules_to_save) == copies
        assert torch.equal(model(clips), expected[active])
    model.delete_adapter("adapter2")
    assert model.active_adapters == [] and model.modules_to_save is None and not norm.modules_to_save


@pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted")
def test_after_a_deletion_all_layers_run_the_same_adapter():
    model = adapt()
    model.add_adapter("first", config(layers_to_transform=[0]))
    model.add_adapter("last", config(layers_to_transform=[2], temporal_embedding=False))
    model.delete_adapter("default")
    assert model.get_model_status().active_adapters == model.active_adapters


@pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted")
def test_after_a_deletion_the_next_adapter_trains_completely():
    model = adapt(modules_to_save=["patch_embed"])
    model.add_adapter("other", config())
    model.set_adapter("other")
    model.delete_adapter("other")
    assert trainable(model) == keys_of(model, "default")


def test_disabling_restores_the_previous_state(clips):
    backbone = build("timm_vit")
    untouched = zoo.frame_average(backbone, clips)
    model = adapt(backbone)
    adapted = model(clips)

    def check(enabled: bool) -> None:
        assert [layer.disable_adapters for layer in tuner_layers(model)] == [not enabled] * 3
        assert torch.equal(model(clips), adapted if enabled else untouched)

    check(True)
    assert model.has_active_enabled_adapter
    with model.disable_adapter():
        check(False)
        with model.disable_adapter():
            check(False)
        assert not model.has_active_enabled_adapter
        check(False)
    assert model.has_active_enabled_adapter
    check(True)
    with pytest.raises(RuntimeError, match="out of memory"), model.disable_adapter():
        raise RuntimeError("out of memory")
    check(True)
    model.disable_adapter_layers()
    with model.disable_adapter():
        check(False)
    check(False)
    model.enable_adapter_layers()
    check(True)


def test_partly_disabled_adapters_warn(clips):
    model = adapt()
    before = model(clips)
    tuner_layers(model)[0].enable_adapters(False)
    with pytest.warns(UserWarning, match="some adapter layers that are enabled and others"), model.disable_adapter():
        pass
    assert torch.equal(model(clips), before)
