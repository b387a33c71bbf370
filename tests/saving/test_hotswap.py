"""Hot swapping: the model scores like the new adapter, without being recompiled; half-precision files."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
import zoo
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from peft_aim import AIMConfig, hotswap_adapter


def config(**options: object) -> AIMConfig:
    return AIMConfig(**{"num_frames": zoo.FRAMES, "num_labels": 3, "init_weights": False, **options})


@pytest.fixture
def saved(tmp_path) -> tuple[nn.Module, list[Path], list[Tensor]]:
    """A backbone, the folders of two adapters, and their scores."""
    backbone, folders, scores = zoo.build("timm_clip"), [], []
    for number in range(2):
        torch.manual_seed(number)
        changes = {"id2label": {0: f"a{number}", 1: "b", 2: "c"}, "modules_to_save": ["patch_embed"]}
        model = get_peft_model(copy.deepcopy(backbone), config(**changes)).eval()
        folders.append(tmp_path / str(number))
        model.save_pretrained(folders[-1])
        with torch.no_grad():
            scores.append(model(zoo.make_clips()))
    return backbone, folders, scores


@torch.no_grad()
def test_the_new_adapter_replaces_the_old_one_in_place(saved):
    backbone, folders, scores = saved
    model = PeftModel.from_pretrained(backbone, folders[0])
    parameters = list(model.parameters())
    for number in (1, 0, 1):
        hotswap_adapter(model, str(folders[number]))
        assert torch.equal(model(zoo.make_clips()), scores[number])
        assert model.peft_config["default"].id2label[0] == f"a{number}"
        assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    model.print_adapted_blocks()


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch cannot trace the context managers of PeftModel yet")
@torch.no_grad()
def test_compiled_models_are_not_recompiled(saved):
    backbone, folders, scores = saved
    model = PeftModel.from_pretrained(backbone, folders[0]).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(zoo.make_clips())
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in (1, 0):
            options = json.loads((folders[number] / "adapter_config.json").read_text())
            trained_otherwise = {**options, "recompute": "mlp", "drop_path": 0.1 * number, "head_dropout": 0.5}
            (folders[number] / "adapter_config.json").write_text(json.dumps(trained_otherwise))
            hotswap_adapter(compiled, folders[number])
            assert torch.allclose(compiled(zoo.make_clips()), scores[number], atol=1e-5)


def test_options_other_than_weights_are_swapped_too(saved, tmp_path):
    options = {"scale": 2.0, "drop_path": 0.5, "head_dropout": 0.25, "recompute": "mlp"}
    model = get_peft_model(zoo.build("timm_clip"), config(**options)).eval()
    model.save_pretrained(tmp_path / "other")
    swapped = get_peft_model(zoo.build("timm_clip"), config()).eval()
    hotswap_adapter(swapped, tmp_path / "other")
    settings = swapped.base_model.model.blocks[1].aim_settings["default"]
    assert (settings.scale, settings.drop_path, settings.recompute) == (2.0, 0.5, "mlp")
    assert swapped.base_model.model.head.aim_dropout == {"default": 0.25}
    assert torch.equal(swapped(zoo.make_clips()), model(zoo.make_clips()))
    assert all(p.requires_grad for name, p in swapped.named_parameters() if ".aim_" in name)


def test_adapters_that_do_not_fit_are_rejected_without_side_effects(saved, tmp_path):
    backbone, folders, scores = saved
    model = PeftModel.from_pretrained(backbone, folders[0]).eval()
    get_peft_model(zoo.build("timm_clip"), config(num_labels=5)).save_pretrained(tmp_path / "five")
    with pytest.raises(
        ValueError, match=r"(?s)five does not contain exactly this adapter's weights.*\(5, 32\) instead of \(3, 32\)"
    ):
        hotswap_adapter(model, tmp_path / "five")
    with pytest.raises(
        ValueError, match="PeftModel has no AIM adapter 'other' to .* adapters are {'default': 'AIM'}. Pass the name"
    ):
        hotswap_adapter(model, folders[1], "other")
    with pytest.raises(ValueError, match=r"load_adapter\('.*five', 'other'\)"):
        hotswap_adapter(model, tmp_path / "five")
    (tmp_path / "five" / "adapter_model.safetensors").write_text("garbage")
    with pytest.raises(ValueError, match="is broken"):
        hotswap_adapter(model, tmp_path / "five")
    (tmp_path / "five" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="contains no adapter_model.safetensors, so nothing was loaded"):
        hotswap_adapter(model, tmp_path / "five")
    get_peft_model(zoo.build("timm_clip"), LoraConfig(target_modules=["qkv"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="lora is an adapter of LORA, not of AIM. Give a saved AIM adapter"):
        hotswap_adapter(model, tmp_path / "lora")
    assert torch.equal(model(zoo.make_clips()), scores[0])


def test_adapters_of_another_backbone_warn(saved):
    _, folders, _ = saved
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backbone = zoo.ZOO["timm_clip"]()
        model = get_peft_model(backbone, config(modules_to_save=["patch_embed"]))
    with pytest.warns(UserWarning, match="was trained on a backbone with the fingerprint"):
        hotswap_adapter(model, folders[0])


def saved_dtypes(folder: Path) -> set[str]:
    content = (folder / "adapter_model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}


@pytest.mark.parametrize(("dtype", "short"), [("float16", "F16"), ("bfloat16", "BF16")])
@torch.no_grad()
def test_half_precision_halves_the_file_and_loads_in_the_dtype_of_training(tmp_path, dtype, short):
    backbone = zoo.build("hf_vit")
    model = get_peft_model(copy.deepcopy(backbone), config()).eval()
    model.save_pretrained(tmp_path / "full")
    model.peft_config["default"].save_dtype = dtype
    model.save_pretrained(tmp_path / "half")
    sizes = [(tmp_path / name / "adapter_model.safetensors").stat().st_size for name in ("full", "half")]
    assert saved_dtypes(tmp_path / "half") == {short} and 0.5 < sizes[1] / sizes[0] < 0.7
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(
            copy.deepcopy(backbone), tmp_path / "half", low_cpu_mem_usage=low_cpu_mem_usage
        )
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        assert torch.allclose(loaded(zoo.make_clips()).logits, model(zoo.make_clips()).logits, atol=0.05)
        for name, parameter in loaded.named_parameters():
            if ".aim_" in name:
                assert torch.equal(parameter, model.get_parameter(name).to(getattr(torch, dtype)).float())


def test_values_too_large_for_half_precision_are_rejected(tmp_path):
    model = get_peft_model(zoo.build("timm_vit"), config(save_dtype="float16"))
    model.get_parameter("base_model.model.head.aim_head.default.weight").data[0, 0] = 1e6
    with pytest.raises(ValueError, match="cannot hold all of .*head.aim_head.default.weight, whose .* up to 1e.06"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="save_dtype='half' is not supported. Use 'float16', 'bfloat16' or None"):
        config(save_dtype="half")
