"""What PEFT expects of saving and loading."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import transformers as tf
import zoo
from expectations.adapted import EVERYTHING, adapt, build, config, inside, keys_of, same, trainable
from huggingface_hub import ModelCard
from peft import (
    AutoPeftModel,
    PeftConfig,
    PeftModel,
    get_base_model_state_dict,
    get_peft_model,
    get_peft_model_state_dict,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)
from peft.helpers import check_if_peft_model
from safetensors.torch import load_file
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel


def test_an_adapter_saved_as_bin_loads_the_same(clips, tmp_path):
    model = adapt("timm_clip", **EVERYTHING)
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.bin"}
    loaded = PeftModel.from_pretrained(build("timm_clip"), tmp_path)
    assert same(loaded.state_dict(), model.state_dict())
    assert torch.equal(loaded(clips), model(clips))


@pytest.mark.parametrize("named", [True, False])
def test_card_and_config_name_the_backbone(named, tmp_path):
    backbone = build("timm_vit")
    if named:
        build("hf_vit").save_pretrained(tmp_path / "backbone")
        backbone = tf.ViTForImageClassification.from_pretrained(tmp_path / "backbone")
    model = adapt(backbone)
    expected = model.config.to_dict()["_name_or_path"] if hasattr(model, "config") else None
    assert expected == (str(tmp_path / "backbone") if named else None)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        card = ModelCard.load(Path(folder) / "README.md").data.to_dict()
        saved = json.loads((Path(folder) / "adapter_config.json").read_text())
    assert card["library_name"] == "peft" and card.get("base_model") == expected
    assert saved["base_model_name_or_path"] == expected
    assert saved["peft_type"] == "AIM" and saved["inference_mode"] and not model.peft_config["default"].inference_mode
    assert saved["auto_mapping"]["base_model_class"] == type(backbone).__name__


def test_an_existing_card_keeps_its_text(tmp_path):
    (tmp_path / "README.md").write_text("---\nmeta: hello\n---\nThis is a model card\n")
    adapt().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict()["meta"] == "hello" and card.data.library_name == "peft"
    assert "This is a model card" in card.text


def test_only_selected_adapters_are_saved(clips, tmp_path):
    model = adapt()
    model.add_adapter("other", config(num_labels=3))
    model.save_pretrained(tmp_path / "one", selected_adapters=["default"])
    assert not (tmp_path / "one" / "other").exists()
    loaded = PeftModel.from_pretrained(build("timm_vit"), tmp_path / "one")
    assert list(loaded.peft_config) == ["default"] and torch.equal(loaded(clips), model(clips))
    model.save_pretrained(tmp_path / "two", selected_adapters=["other"])
    assert not (tmp_path / "two" / "adapter_config.json").exists()
    model.set_adapter("other")
    loaded = PeftModel.from_pretrained(build("timm_vit"), tmp_path / "two" / "other")
    assert torch.equal(loaded(clips), model(clips))


def test_batch_statistics_in_modules_to_save_are_saved(clips, tmp_path):
    backbone = inside("net", batch=nn.BatchNorm1d(5))
    twin = copy.deepcopy(backbone)
    model = adapt(backbone, modules_to_save=["batch"]).train()
    for _ in range(3):
        model(clips)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(twin, tmp_path, ignore_mismatched_sizes=True)
    assert loaded.base_model.model.batch.modules_to_save["default"].num_batches_tracked == 3
    assert torch.equal(loaded(clips), model.eval()(clips))


def test_a_given_config_is_kept(tmp_path):
    model = adapt()
    model.save_pretrained(tmp_path)
    for trains in (False, True):
        given = config()
        loaded = PeftModel.from_pretrained(build("timm_vit"), tmp_path, config=given, is_trainable=trains)
        assert loaded.peft_config["default"] is given and given.inference_mode is not trains


def test_loading_leaves_no_key_missing_or_unexpected(tmp_path):
    adapt("hf_vit", num_labels=3, modules_to_save=["vit.layernorm"]).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("hf_vit"), tmp_path, device_map={"": "cpu"})
    for name in ("other", "yet-another"):
        result = loaded.load_adapter(tmp_path, name)
        assert result.missing_keys == result.unexpected_keys == []
    assert list(loaded.peft_config) == ["default", "other", "yet-another"]


def test_an_adapter_in_a_subfolder_loads(clips, tmp_path):
    model = adapt(num_labels=3)
    model.save_pretrained(tmp_path / "sub")
    assert PeftConfig.from_pretrained(tmp_path, subfolder="sub").num_labels == 3
    loaded = PeftModel.from_pretrained(build("timm_vit"), tmp_path, subfolder="sub")
    loaded.load_adapter(tmp_path, "other", subfolder="sub")
    for name in ("default", "other"):
        loaded.set_adapter(name)
        assert torch.equal(loaded(clips), model(clips))


def test_a_cached_hub_adapter_loads_offline(clips, tmp_path, monkeypatch):
    model, repository = adapt(num_labels=3), tmp_path / "models--you--task"
    snapshot = repository / "snapshots" / ("0123456789abcdef" * 3)[:40]
    model.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert PeftConfig.from_pretrained("you/task", cache_dir=tmp_path).num_labels == 3
    loaded = PeftModel.from_pretrained(build("timm_vit"), "you/task", cache_dir=tmp_path)
    loaded.load_adapter("you/task", "other", cache_dir=tmp_path)
    for name in ("default", "other"):
        loaded.set_adapter(name)
        assert torch.equal(loaded(clips), model(clips))


def test_the_revision_of_the_backbone_is_saved(tmp_path):
    get_peft_model(build("timm_vit"), config(), revision="v2").save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("timm_vit"), tmp_path)
    assert loaded.peft_config["default"].revision == "v2"
    with pytest.warns(UserWarning, match="already set base model revision to v1, overwriting with revision v2"):
        get_peft_model(build("timm_vit"), config(revision="v1"), revision="v2")


@pytest.mark.parametrize("name", [None, "foobar"])
def test_renaming_the_backbone_warns(name):
    backbone = build("timm_vit")
    if name:
        backbone.name_or_path = name
    with pytest.warns(UserWarning, match=f"was renamed from 'custom' to '{name}'"):
        model = get_peft_model(backbone, config(base_model_name_or_path="custom"))
    assert model.peft_config["default"].base_model_name_or_path == name


def test_key_mapping_renames_saved_keys(clips, tmp_path):
    model = adapt(inside("trunk"), target_modules=["blocks.0", "blocks.1"], temporal_embedding=False)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="was trained on a backbone with the fingerprint"):  # of weights by name
        loaded = PeftModel.from_pretrained(inside("visual"), tmp_path, key_mapping={"^trunk": "visual"})
    assert torch.equal(loaded(clips), model(clips))


def test_saved_embedding_layers_are_loaded(clips, tmp_path):
    """As with LoRA: they are the backbone's, and may have been trained by hand."""
    model = adapt("hf_vit")
    with torch.no_grad():
        model.get_input_embeddings().projection.weight.mul_(1.001)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    names = [name for name in load_file(tmp_path / "adapter_model.safetensors") if ".aim_" not in name]
    assert [name.rpartition(".")[0] for name in names] == [
        "base_model.model.vit.embeddings.patch_embeddings.projection"
    ] * 2
    loaded = PeftModel.from_pretrained(build("hf_vit"), tmp_path)
    loaded.load_adapter(tmp_path, "other")
    for name in ("default", "other"):
        loaded.set_adapter(name)
        assert torch.equal(loaded(clips).logits, model(clips).logits)


@pytest.mark.parametrize("saved", [None, ["patch_embed"]])
def test_state_dicts_of_the_adapter_alone_are_saved(saved, tmp_path):
    """As a Trainer or the user passes them: of the model, of all adapters, of one, with its name or without."""
    model = adapt(**EVERYTHING, modules_to_save=saved)
    model.add_adapter("other", config(num_labels=3, modules_to_save=saved))
    model.save_pretrained(tmp_path / "all")
    every = model.state_dict()
    adapters = {key: t for key, t in every.items() if ".aim_" in key or ".modules_to_save." in key}
    for name, folder in (("default", ""), ("other", "other")):
        expected = load_file(tmp_path / "all" / folder / "adapter_model.safetensors")
        named = {key: tensor for key, tensor in every.items() if f".{name}." in f"{key}."}
        plain = [] if saved else [get_peft_model_state_dict(model, adapter_name=name)]  # LoRA cannot either
        for i, given in enumerate([every, adapters, named, *plain]):
            model.save_pretrained(tmp_path / f"{name}{i}", state_dict=given, selected_adapters=[name])
            assert same(load_file(tmp_path / f"{name}{i}" / folder / "adapter_model.safetensors"), expected)


def test_a_given_state_dict_is_not_modified():
    options = {"num_labels": 3, "modules_to_save": ["norm"]}
    given = get_peft_model_state_dict(adapt(**options))
    before = dict(given)
    for _ in range(2):
        set_peft_model_state_dict(adapt(**options), given)
    assert list(given) == list(before) and all(given[key] is tensor for key, tensor in before.items())


@pytest.mark.parametrize("name", ["timm_clip", "hf_vit", "torchvision_swin"])
def test_base_model_weights_round_trip_by_their_original_names(name):
    backbone = build(name)
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    saved = {"modules_to_save": ["patch_embed"]} if name == "timm_clip" else {}
    model = adapt(backbone, **EVERYTHING, **saved)
    model.add_adapter("other", config())
    assert same(get_base_model_state_dict(model), before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    result = set_base_model_state_dict(model, before)
    assert result.missing_keys == result.unexpected_keys == []
    assert same(get_base_model_state_dict(model), before)
    (first, _), *others = before.items()
    for wrong, message in ((dict(others), "Missing key"), ({**before, "new": torch.zeros(1)}, "Unexpected key")):
        with pytest.raises(RuntimeError, match=message):
            set_base_model_state_dict(model, wrong, strict=True)
    assert set_base_model_state_dict(model, dict(others), strict=False).missing_keys == [first]


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no distributed package")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`", "ignore:When using ``NO_SHARD``")
@pytest.mark.parametrize("name", ["timm_clip", "hf_vit"])
@torch.no_grad()
def test_the_state_dict_round_trips_through_fsdp(name, clips):
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        device = torch.device("cpu")
        sharded = FullyShardedDataParallel(adapt(name, **EVERYTHING), use_orig_params=True, device_id=device)
        expected, weights = zoo.scores(sharded(clips)), get_peft_model_state_dict(sharded)
    finally:
        distributed.destroy_process_group()
    fresh = adapt(name, **EVERYTHING)
    assert not torch.equal(zoo.scores(fresh(clips)), expected)
    set_peft_model_state_dict(fresh, weights)
    assert torch.equal(zoo.scores(fresh(clips)), expected)


def test_auto_model_passes_its_arguments(clips, tmp_path):
    build("hf_vit").save_pretrained(tmp_path / "backbone")
    backbone = tf.ViTForImageClassification.from_pretrained(tmp_path / "backbone")
    adapt(backbone, num_labels=3).save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter", "name", True, dtype=torch.bfloat16)
    assert loaded.active_adapters == ["name"] and trainable(loaded) == keys_of(loaded, "name")
    assert loaded.get_base_model().dtype == torch.bfloat16
    loaded.save_pretrained(tmp_path / "again")
    again = AutoPeftModel.from_pretrained(tmp_path / "again" / "name").eval()
    assert again(clips).logits.shape == (2, 3)


def test_folders_of_adapters_are_recognized(tmp_path):
    adapt().save_pretrained(tmp_path / "adapter")
    adapt("timm_vit", "other").save_pretrained(tmp_path / "named")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "adapter_config.json").write_text('{"foo": "bar"}')
    folders = ("adapter", "named", "named/other", "junk")
    assert [folder for folder in folders if check_if_peft_model(tmp_path / folder)] == ["adapter", "named/other"]
