"""Broken adapter files are rejected, with the names of the wrong weights, and never loaded in part."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import warnings

import pytest
import torch
import zoo
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import nn

from peft_aim import AIMConfig
from peft_aim.layers.block import AIMLayer
from peft_aim.saving.fingerprint import fingerprint_of, same_weights

UP = "base_model.model.blocks.0.aim_spatial_up.weight"
EMBEDDING = "base_model.model.blocks.0.aim_temporal_embedding"


def config(**options: object) -> AIMConfig:
    return AIMConfig(**{"num_frames": zoo.FRAMES, "init_weights": False, "num_labels": 2, **options})


def lose(weights):
    del weights[UP], weights[EMBEDDING]


def add(weights):
    weights["base_model.model.blocks.9.aim_spatial_up.weight"] = torch.ones(1)


def reshape(weights):
    weights[UP] = torch.ones(3, 3)


DAMAGES = {
    lose: r"missing \(2\): blocks.0.aim_spatial_up.weight, blocks.0.aim_temporal_embedding",
    add: r"unexpected \(1\): blocks.9.aim_spatial_up.weight",
    reshape: r"of another shape \(1\): blocks.0.aim_spatial_up.weight, \(3, 3\) instead of \(32, 8\)",
}


@pytest.fixture
def folder(tmp_path):
    get_peft_model(zoo.build("timm_vit"), config(modules_to_save=["norm"])).save_pretrained(tmp_path / "good")
    return tmp_path


def damaged(folder, damage, safe=True):
    shutil.copytree(folder / "good", folder / "bad")
    weights = load_file(folder / "good" / "adapter_model.safetensors")
    damage(weights)
    if safe:
        save_file(weights, folder / "bad" / "adapter_model.safetensors")
    else:
        (folder / "bad" / "adapter_model.safetensors").unlink()
        torch.save(weights, folder / "bad" / "adapter_model.bin")
    return folder / "bad"


def same_model(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return repr(a) == repr(b) and all(map(torch.equal, *(state.values() for state in states)))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damaged_files_leave_the_backbone_untouched(folder, damage, safe):
    backbone = zoo.build("timm_vit")
    untouched = copy.deepcopy(backbone)
    bad = damaged(folder, damage, safe)
    with pytest.raises(ValueError, match=f"nothing was loaded.\n  {DAMAGES[damage]}"):
        PeftModel.from_pretrained(backbone, bad)
    assert same_model(backbone, untouched)
    assert set(vars(backbone)) == set(vars(untouched))
    PeftModel.from_pretrained(backbone, folder / "good")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damaged_files_leave_other_adapters_untouched(folder, damage):
    model = PeftModel.from_pretrained(zoo.build("timm_vit"), folder / "good", adapter_name="good")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    bad = damaged(folder, damage)
    for _ in range(2):  # the name is free again
        with pytest.raises(ValueError, match=DAMAGES[damage]):
            model.load_adapter(bad, "bad")
    assert set(model.peft_config) == {"good"}
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    model.load_adapter(folder / "good", "bad")


@pytest.mark.parametrize("damage", [lose, add, reshape], ids=lambda f: f.__name__)
def test_damaged_weights_do_not_overwrite_loaded_ones(folder, damage):
    """As when training is resumed: the adapter is loaded already, and its file is read again."""
    model = PeftModel.from_pretrained(zoo.build("timm_vit"), folder / "good")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    bad = damaged(folder, damage)
    with pytest.raises(ValueError, match=DAMAGES[damage]):
        model.load_adapter(bad, "default")
    weights = get_peft_model_state_dict(model)
    damage(weights)
    with pytest.raises(ValueError, match=DAMAGES[damage]):
        set_peft_model_state_dict(model, weights)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_truncated_files_are_rejected(folder):
    path = folder / "good" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    backbone = zoo.build("timm_vit")
    untouched = copy.deepcopy(backbone)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors is broken .*nothing was loaded"):
        PeftModel.from_pretrained(backbone, folder / "good")
    assert same_model(backbone, untouched)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damaged_files_are_rejected_if_the_config_is_given(folder, damage):
    backbone = zoo.build("timm_vit")
    untouched = copy.deepcopy(backbone)
    bad = damaged(folder, damage)
    with pytest.raises(ValueError, match=DAMAGES[damage]):
        PeftModel.from_pretrained(backbone, bad, config=PeftConfig.from_pretrained(bad))
    assert same_model(backbone, untouched)


def test_wrong_weights_leave_an_adapter_in_use_unchanged(folder):
    model = get_peft_model(zoo.build("timm_vit"), PeftConfig.from_pretrained(folder / "good"))
    scores, weights = model(zoo.make_clips()), get_peft_model_state_dict(model)
    lose(weights)
    with pytest.raises(ValueError, match="nothing was loaded"):
        set_peft_model_state_dict(model, weights)
    assert torch.equal(model(zoo.make_clips()), scores)


def test_rejecting_an_adapter_keeps_the_other_one_active(folder):
    model = get_peft_model(zoo.build("timm_vit"), config())
    scores, bad = model(zoo.make_clips()), damaged(folder, lose)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="nothing was loaded"):
        warnings.simplefilter("ignore")  # PEFT warns about a second adapter
        inject_adapter_in_model(AIMConfig.from_pretrained(bad), model.base_model.model, "bad")
    assert torch.equal(model(zoo.make_clips()), scores)


def test_folders_without_weights_are_rejected(folder):
    model = PeftModel.from_pretrained(zoo.build("timm_vit"), folder / "good", adapter_name="good")
    (folder / "empty").mkdir()
    shutil.copy(folder / "good" / "adapter_config.json", folder / "empty")
    with pytest.raises(ValueError, match="empty.* contains no adapter_model.safetensors, so nothing was loaded"):
        model.load_adapter(folder / "empty", "bad")
    assert set(model.peft_config) == {"good"}


def test_new_adapters_from_saved_options(folder):
    loaded = AIMConfig.from_pretrained(folder / "good")
    fresh = dataclasses.replace(loaded, backbone_fingerprint=None, id2label=None, num_labels=7)
    model = get_peft_model(zoo.ZOO["timm_vit"]().eval(), fresh)
    assert model(zoo.make_clips()).shape == (2, 7)


def test_adapters_for_another_depth_or_width_are_rejected(folder, tmp_path):
    zoo_vit = zoo.ZOO["timm_deit"]().eval()  # two blocks of the same names and width, but no third one
    with pytest.raises(ValueError, match=r"unexpected \(\d+\): blocks.2"):
        PeftModel.from_pretrained(zoo_vit, folder / "good")
    wide = zoo._timm("vit_tiny_patch16_224", patch_size=8, embed_dim=48, num_heads=2, depth=3).eval()
    with pytest.raises(ValueError, match=r"aim_joint_down.bias, \(8,\) instead of \(12,\)"):
        PeftModel.from_pretrained(wide, folder / "good")


def test_saved_files_contain_no_weights_of_the_backbone(folder):
    weights = load_file(folder / "good" / "adapter_model.safetensors")
    own = {key for key in weights if ".aim_" in key} | {"base_model.model.norm.weight", "base_model.model.norm.bias"}
    assert set(weights) == own
    model = PeftModel.from_pretrained(zoo.build("timm_vit"), folder / "good", is_trainable=True)
    assert sum(t.numel() for t in weights.values()) == model.get_nb_trainable_parameters()[0]


# Fingerprints: an adapter is saved with the fingerprint of the backbone it was trained on.


def fingerprints(backbone: nn.Module, folder) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PeftModel.from_pretrained(backbone, folder)
    return [str(w.message) for w in caught if "fingerprint" in str(w.message)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_fingerprints_do_not_depend_on_the_dtype(folder, dtype):
    assert fingerprints(zoo.build("timm_vit").to(dtype), folder / "good") == []


def test_fingerprints_do_not_depend_on_replaced_modules(folder):
    """The adapter has its own head and norm, so those of the backbone are not compared."""
    backbone = zoo.build("timm_vit")
    backbone.reset_classifier(0)
    nn.init.zeros_(backbone.norm.weight)
    assert fingerprints(backbone, folder / "good") == []


def test_quantized_weights_have_no_fingerprint():
    floats = ("bias", torch.ones(3))
    assert fingerprint_of([floats, ("index", torch.zeros(4, 4, dtype=torch.int64))]) is not None
    assert fingerprint_of([floats, ("weight", torch.zeros(4, 4, dtype=torch.uint8))]) is None


def test_fingerprints_of_large_tensors():
    """With more elements than float32 can count: the token embedding of CLIP."""
    table = torch.randn(49408, 512)
    assert same_weights(fingerprint_of([("w", table)]), fingerprint_of([("w", table.bfloat16())]))
    assert not same_weights(fingerprint_of([("w", table)]), fingerprint_of([("w", table.flip(0))]))


@pytest.mark.parametrize("which", ["all", "one", "scaled", "a little", "rows"])
def test_other_weights_warn_with_both_fingerprints(folder, which):
    backbone = zoo.build("timm_vit")
    if which == "all":
        backbone = zoo.ZOO["timm_vit"]().eval()
    elif which == "one":
        nn.init.normal_(backbone.blocks[1].mlp.fc1.weight)
    elif which == "scaled":
        backbone.blocks[1].mlp.fc1.weight.data.mul_(1.2)
    elif which == "rows":
        backbone.blocks[1].mlp.fc1.weight.data = backbone.blocks[1].mlp.fc1.weight.data.flip(0)
    else:
        for parameter in backbone.parameters():
            parameter.data.mul_(1 + 0.03 * torch.randn_like(parameter))
    (message,) = fingerprints(backbone, folder / "good")
    stored = PeftModel.from_pretrained(zoo.build("timm_vit"), folder / "good").peft_config["default"]
    assert f"trained on a backbone with the fingerprint {stored.backbone_fingerprint}, but this" in message
    assert "load the pretrained weights into the backbone before the adapter" in message


def test_the_fingerprint_is_computed_when_saving(tmp_path):
    """The weights of a backbone may be loaded after the adapter was added."""
    trained = zoo.build("timm_vit")
    model = get_peft_model(zoo.ZOO["timm_vit"]().eval(), config())
    for name, parameter in model.base_model.model.named_parameters():
        if ".aim_" not in name:
            parameter.data.copy_(trained.get_parameter(name.replace(".base_layer", "").replace("base_layer.", "")))
    model.save_pretrained(tmp_path)
    assert fingerprints(zoo.build("timm_vit"), tmp_path) == []


def test_one_config_can_be_used_for_several_backbones(tmp_path):
    """PEFT keeps the same object, but each adapter is saved with the blocks of its own model."""
    shared, models = config(), {}
    for name, blocks in (("timm_deit", 2), ("timm_vit", 3), ("hf_vit", 2)):
        models[name] = get_peft_model(zoo.build(name), shared).eval()
        assert models[name].peft_config["default"] is shared
        assert sum(isinstance(module, AIMLayer) for module in models[name].modules()) == blocks
    clips = zoo.make_clips()
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        loaded = PeftModel.from_pretrained(zoo.build(name), tmp_path / name).eval()
        assert torch.equal(zoo.scores(loaded(clips)), zoo.scores(model(clips)))
    found = [AIMConfig.from_pretrained(tmp_path / name).target_modules for name in models]
    assert found == [r"blocks\.(0|1)", r"blocks\.(0|1|2)", r"vit\.layers\.(0|1)"]
    assert shared.to_dict()["backbone_fingerprint"] is not None
    get_peft_model(zoo.build("timm_vit"), shared)  # the values of the model that was saved last are forgotten
    assert "backbone_fingerprint" not in shared.to_dict()
    assert shared.to_dict()["target_modules"] == r"blocks\.(0|1|2)"


def test_given_targets_are_not_changed(tmp_path):
    given = config(target_modules=["blocks.1", "blocks.0"], layers_to_transform=0)
    model = get_peft_model(zoo.build("timm_vit"), given)
    model.save_pretrained(tmp_path)
    assert given.target_modules == {"blocks.0", "blocks.1"} == AIMConfig.from_pretrained(tmp_path).target_modules
    with pytest.raises(ValueError, match="matches no module"):
        get_peft_model(zoo.build("hf_vit"), given)


def test_a_config_given_for_loading_is_kept(folder):
    given = PeftConfig.from_pretrained(folder / "good")
    model = PeftModel.from_pretrained(zoo.build("timm_vit"), folder / "good", config=given)
    assert model.peft_config["default"] is given


def test_adapters_loaded_for_inference_keep_their_fingerprint(folder, tmp_path):
    with pytest.warns(UserWarning, match="fingerprint"):
        model = PeftModel.from_pretrained(zoo.ZOO["timm_vit"]().eval(), folder / "good")
    model.save_pretrained(tmp_path / "again")
    assert fingerprints(zoo.build("timm_vit"), tmp_path / "again") == []
