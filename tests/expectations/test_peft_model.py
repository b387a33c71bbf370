"""What PEFT expects of an adapted model: its attributes, and its status."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from expectations.adapted import adapt, build, config, keys_of, trainable, with_gradient
from peft import (
    PeftModel,
    PeftType,
    convert_to_lora,
    get_layer_status,
    get_model_status,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from peft.utils.hotswap import hotswap_adapter as hotswap_of_peft
from torch import nn

from peft_aim import AIMModel
from peft_aim.layers import AIMHead, AIMLayer


def test_a_peft_model_has_its_attributes(clips, capsys):
    backbone = build("hf_vit")
    model = adapt(backbone, num_labels=3, modules_to_save=["vit.layernorm"])
    for method in ("save_pretrained", "from_pretrained", "push_to_hub"):
        assert callable(getattr(model, method))
    assert model.get_base_model() is backbone and model.config is backbone.config
    assert (model.prefix, model.peft_type, model.modules_to_save) == ("aim_", PeftType.AIM, {"vit.layernorm"})
    assert model.active_peft_config is model.peft_config["default"]
    trained = sum(parameter.numel() for key, parameter in model.named_parameters() if key in trainable(model))
    assert model.get_nb_trainable_parameters() == (trained, sum(p.numel() for p in model.parameters()))
    model.print_trainable_parameters()
    assert f"trainable params: {trained:,d} ||" in capsys.readouterr().out


def test_adapters_train_in_a_model_prepared_for_quantized_training(clips):
    backbone = prepare_model_for_kbit_training(build("hf_vit"), use_gradient_checkpointing=False)
    assert trainable(backbone) == set()
    model = adapt(backbone, num_labels=3).train()
    model.enable_input_require_grads()
    assert model.get_input_embeddings()(clips[:, 0]).requires_grad
    model(clips).logits.sum().backward()
    assert with_gradient(model) == keys_of(model, "default")


def test_layers_pass_on_attributes_and_have_a_repr():
    backbone = build("timm_vit")
    attention, head = backbone.blocks[0].attn, backbone.head
    model = adapt(backbone, num_labels=3).base_model.model
    assert model.blocks[0].attn is attention
    assert model.head.weight is head.weight and model.head.bias is head.bias
    for layer, kind, container in ((model.blocks[0], AIMLayer, "aim_joint_up"), (model.head, AIMHead, "aim_head")):
        assert isinstance(layer, kind) and repr(layer).startswith(f"aim.{kind.__name__}(")
        assert f"({container}): ModuleDict(\n    (default)" in repr(layer)


def test_attribute_lookups_before_init_do_not_recurse(monkeypatch):
    """DeepSpeed wraps every __init__ and looks attributes up before it runs."""

    def looking_up(init: Any) -> Any:
        @functools.wraps(init)
        def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            assert not hasattr(self, "unknown")
            init(self, *args, **kwargs)

        return wrapper

    for cls in (PeftModel, AIMModel, AIMLayer, AIMHead):
        monkeypatch.setattr(cls, "__init__", looking_up(cls.__init__))
    adapt(num_labels=3)


def test_unsupported_operations_raise_an_error(clips, tmp_path):
    model = adapt()
    before = model(clips)
    model.save_pretrained(tmp_path)
    for options in ({}, {"safe_merge": True}):
        for merge in (model.merge_and_unload, model.merge_adapter):
            with pytest.raises(ValueError, match="AIM adapters cannot be merged"):
                merge(**options)
    with pytest.raises(
        ValueError, match=r"cannot be combined by add_weighted_adapter: .*average the scores of several"
    ):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    assert list(model.peft_config) == ["default"]
    assert not model.supports_lora_conversion()
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(model, rank=4)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but AIM was passed"):
        hotswap_of_peft(model, tmp_path, "default")
    assert torch.equal(model(clips), before)
    backbone = build("timm_vit")
    untouched = repr(backbone)
    with pytest.raises(ValueError, match="'AIM' is not compatible with the `PeftMixedModel`"):
        get_peft_model(backbone, config(), mixed=True)
    assert repr(backbone) == untouched


def test_several_active_adapters_raise_an_error():
    model = adapt(modules_to_save=["norm"])
    model.add_adapter("other", config())
    with pytest.raises(ValueError, match="AIM runs one adapter at a time"):
        model.base_model.set_adapter(["default", "other"])


def test_status_of_several_adapters():
    backbone, saved = build("torchvision_vit"), {"modules_to_save": ["encoder.ln"]}
    model = adapt(backbone, num_labels=3, **saved)
    model.add_adapter("other", config(layers_to_transform=[1], temporal_embedding=False, **saved))
    names = ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1", "encoder.ln", "heads.head"]
    types = ["aim.AIMLayer", "aim.AIMLayer", "ModulesToSaveWrapper", "aim.AIMHead"]
    available = [["default"], ["default", "other"], ["default", "other"], ["default"]]
    for owner, prefix in ((model, "model."), (backbone, "")):  # as a PeftModel and injected
        layers, status = get_layer_status(owner), get_model_status(owner)
        assert [layer.name for layer in layers] == [prefix + name for name in names]
        assert [layer.module_type for layer in layers] == types
        assert [layer.available_adapters for layer in layers] == available
        assert [layer.devices for layer in layers] == [{name: ["cpu"] for name in found} for found in available]
        assert all(layer.enabled and layer.merged_adapters == [] for layer in layers)
        assert all(layer.quantization_backend is None for layer in layers)
        assert (status.trainable_params, status.total_params) == model.get_nb_trainable_parameters()
        assert status.num_adapter_layers == 4 and status.available_adapters == ["default", "other"]
        assert status.devices == {"default": ["cpu"], "other": ["cpu"]}
        assert status.enabled is True and status.merged_adapters == [] and status.quantization_backend is None
    assert (status.adapter_model_type, status.peft_types) == ("None", {})
    status = model.get_model_status()
    assert (status.base_model_type, status.adapter_model_type) == ("VisionTransformer", "AIMModel")
    assert status.peft_types == {"default": "AIM", "other": "AIM"}

    def check(active: str, grad: dict[str, bool]) -> None:
        layers, status = model.get_layer_status(), model.get_model_status()
        assert status.active_adapters == [active] and status.requires_grad == grad
        assert [layer.requires_grad for layer in layers] == [
            {name: grad[name] for name in found} for found in available
        ]

    check("default", {"default": True, "other": False})
    model.set_adapter("other")
    check("other", {"default": False, "other": True})
    model.set_requires_grad("default")
    model.set_requires_grad("other", requires_grad=False)
    check("other", {"default": True, "other": False})


def test_status_of_inconsistent_layers():
    with pytest.raises(ValueError, match="No adapter layers found in the model"):
        get_model_status(build("timm_vit"))
    model = adapt()
    model.add_adapter("other", config())
    block = model.base_model.model.blocks[0]
    block.enable_adapters(False)
    assert [layer.enabled for layer in model.get_layer_status()] == [False, True, True]
    assert model.get_model_status().enabled == "irregular"
    block.enable_adapters(True)
    block.aim_spatial_up["default"].weight.requires_grad = False
    assert model.get_layer_status()[0].requires_grad == {"default": "irregular", "other": False}
    assert model.get_model_status().requires_grad == {"default": "irregular", "other": False}
    block.set_adapter("other")
    assert model.get_model_status().active_adapters == "irregular"
