"""What PEFT expects in training, and which parameters require gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import zoo
from expectations.adapted import adapt, build, config, keys_of, same, trainable, tuner_layers, with_gradient
from peft import PeftModel, get_peft_model
from torch import Tensor


@pytest.mark.parametrize(("name", "saved"), [("timm_clip", "patch_embed"), ("hf_vit", "patch_embeddings")])
def test_training_changes_only_the_adapter(name, saved, clips, tmp_path):
    backbone = build(name)
    untouched = zoo.frame_average(backbone, clips)
    model = adapt(backbone, init_weights=True, num_labels=5, final_norm=True, modules_to_save=[saved]).train()
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(zoo.scores(model(clips)), torch.tensor([0, 2])).backward()
        optimizer.step()
    changed = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    assert changed == trainable(model) == keys_of(model, "default")
    scores = zoo.scores(model.eval()(clips))
    with model.disable_adapter():
        assert torch.equal(zoo.scores(model(clips)), untouched)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(name), tmp_path)
    assert same(loaded.state_dict(), model.state_dict())
    assert torch.equal(zoo.scores(loaded(clips)), scores)


def test_training_some_blocks_only(clips, tmp_path):
    model, whole = adapt("hf_vit", layers_to_transform=[0]), adapt("hf_vit")
    model(clips).logits.sum().backward()
    assert with_gradient(model) == keys_of(model, "default")
    assert len(trainable(model)) < len(trainable(whole))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("hf_vit"), tmp_path)
    assert torch.equal(loaded(clips).logits, model(clips).logits)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_prepared_by_peft_keeps_the_gradients(reentrant, clips):
    model = adapt("hf_vit", num_labels=3).train()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(clips).logits.square().sum().backward()
        return {key: model.get_parameter(key).grad for key in with_gradient(model)}

    expected = gradients()
    model.prepare_model_for_gradient_checkpointing(model)
    zoo.recompute(model, reentrant)
    assert same(gradients(), expected) and expected.keys() == keys_of(model, "default")


@pytest.mark.parametrize("call", ["get_peft_model", "add_adapter"])
def test_evaluation_mode_is_preserved(call, clips):
    options = {"drop_path": 0.5, "num_labels": 3, "head_dropout": 0.5}
    if call == "get_peft_model":
        model = get_peft_model(build("timm_vit").eval(), config(**options))
    else:
        model = adapt(layers_to_transform=[0])
        model.add_adapter("other", config(**options))
        model.set_adapter("other")
    assert not any(layer.training for layer in tuner_layers(model))
    assert torch.equal(model(clips), model(clips))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"layers_to_transform": [0]}, {"layers_to_transform": [2], "temporal_embedding": False}),
        ({"modules_to_save": ["norm"], "num_labels": 3}, {"modules_to_save": ["norm"], "num_labels": 3}),
    ],
    ids=["same blocks", "different blocks", "modules_to_save"],
)
def test_only_the_active_adapter_requires_grad(first, second):
    model = adapt(**first)
    model.add_adapter("other", config(**second))
    assert trainable(model) == keys_of(model, "default")
    model.disable_adapter_layers()
    assert trainable(model) == set()
    model.enable_adapter_layers()
    assert trainable(model) == keys_of(model, "default")
    for name in ("default", "other", "default"):
        model.set_adapter(name)
        assert trainable(model) == keys_of(model, name)
        with model.disable_adapter():
            assert trainable(model) == set()
        assert trainable(model) == keys_of(model, name)
    for name in ("default", "other"):
        model.set_adapter(name, inference_mode=True)
        assert trainable(model) == set()


def test_set_requires_grad_changes_the_named_adapters_only():
    model = adapt()
    model.add_adapter("other", config(modules_to_save=["norm"], num_labels=3))
    assert trainable(model) == keys_of(model, "default")
    model.set_requires_grad("other")
    assert trainable(model) == keys_of(model, "default", "other")
    model.set_requires_grad("default", requires_grad=False)
    assert trainable(model) == keys_of(model, "other")
    model.set_requires_grad(["default", "other"], requires_grad=False)
    assert trainable(model) == set()


@pytest.mark.parametrize("trains", [False, True])
def test_is_trainable_sets_requires_grad_of_loaded_adapters(trains, tmp_path):
    adapt(num_labels=3, modules_to_save=["norm"]).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(build("timm_vit"), tmp_path, is_trainable=trains)
    expected = ["default"] if trains else []
    assert trainable(model) == keys_of(model, *expected)
    model.load_adapter(tmp_path, "other", is_trainable=trains)
    expected += ["other"] if trains else []
    assert trainable(model) == keys_of(model, *expected)
    model.load_adapter(tmp_path, "opposite", is_trainable=not trains)
    expected += [] if trains else ["opposite"]
    assert trainable(model) == keys_of(model, *expected)
    model.add_adapter("added", config(num_labels=3))
    assert trainable(model) == keys_of(model, *expected)


def test_loading_keeps_requires_grad_of_other_parameters(tmp_path):
    adapt().save_pretrained(tmp_path)
    model = adapt()
    model.get_parameter("base_model.model.patch_embed.proj.weight").requires_grad = True
    model.get_parameter("base_model.model.blocks.0.aim_spatial_up.default.weight").requires_grad = False
    before = trainable(model)
    model.load_adapter(tmp_path, "other")
    assert trainable(model) == before
