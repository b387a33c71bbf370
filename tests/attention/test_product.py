"""Temporal attention that ends in the adapter: one product for two layers, and only where it is one."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import transformers as tf
import zoo
from peft import PeftModel, get_peft_model
from timm.layers import Attention
from torch import nn
from torch.nn.utils import prune

from peft_aim import AIMConfig
from peft_aim.attention import product
from peft_aim.attention.kinds import plain
from peft_aim.attention.product import ending_in, find_output
from peft_aim.layers.block import AIMLayer


def adapt(backbone: nn.Module, **options: object) -> PeftModel:
    return get_peft_model(backbone, AIMConfig(num_frames=zoo.FRAMES, init_weights=False, **options))


def layers(model: nn.Module) -> list[AIMLayer]:
    return [module for module in model.modules() if isinstance(module, AIMLayer)]


@torch.no_grad()
def in_two(model: PeftModel) -> torch.Tensor:
    """Score with one layer after the other."""
    before = [layer.aim_settings["default"] for layer in layers(model)]
    for layer, settings in zip(layers(model), before, strict=True):
        without = replace(settings.temporal, anatomy=replace(layer.anatomy, output=None))
        layer.aim_settings["default"] = replace(settings, temporal=without)
    scores = zoo.scores(model(zoo.make_clips()))
    for layer, settings in zip(layers(model), before, strict=True):
        layer.aim_settings["default"] = settings
    return scores


@pytest.mark.parametrize("name", zoo.ZOO)
@torch.no_grad()
def test_one_product_scores_as_two_do(name, monkeypatch):
    model, calls, as_one = adapt(zoo.build(name)).eval(), [], product.as_one
    monkeypatch.setattr(product, "as_one", lambda *args: calls.append(1) or as_one(*args))
    assert torch.allclose(zoo.scores(model(zoo.make_clips())), in_two(model), atol=1e-5)
    with_kernel = name in (
        "torchvision_vit",
        "open_clip_vit",
        "openai_clip",
    )  # torch's MultiheadAttention projects by itself
    assert len(calls) == (0 if with_kernel else len(layers(model)))


def test_the_ending_is_the_attention_now_and_later():
    attention, down, x = Attention(8, 2), nn.Linear(8, 2), torch.randn(2, 3, 8)
    ending = ending_in(attention, "proj", down)
    before = set(vars(attention)), dict(attention._modules)
    attention.eval()
    assert not ending.training
    assert torch.allclose(ending(x), down(attention(x)), atol=1e-6)
    assert (set(vars(attention)), dict(attention._modules)) == before
    attention.qkv = nn.Linear(8, 24)
    assert torch.allclose(ending(x), down(attention(x)), atol=1e-6)


class Output(nn.Module):
    """The output projection of some of transformers' attentions is a part of a part."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(8, 8)

    def forward(self, x):
        return self.dense(x)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.output = Attention(8, 2), Output()

    def forward(self, x):
        return (self.output(self.inner(x)),)


def test_a_projection_inside_of_a_part_is_replaced_unless_that_has_hooks():
    attention, down, x = Nested(), nn.Linear(8, 2), torch.randn(2, 3, 8)
    assert find_output(plain, copy.deepcopy(attention).double(), 8) == "output.dense"
    (found,) = ending_in(attention, "output.dense", down)(x)
    assert torch.allclose(found, down(attention(x)[0]), atol=1e-6)
    attention.inner.register_forward_hook(lambda module, args, output: None)
    assert ending_in(attention, "output.dense", down) is not None
    attention.output.register_forward_hook(lambda module, args, output: 2 * output)
    assert ending_in(attention, "output.dense", down) is None


def test_dropout_of_attention_is_on_where_the_model_trains_and_off_where_it_does_not():
    config = tf.CLIPVisionConfig(**zoo.SMALL, projection_dim=8, attention_dropout=0.5)
    backbone = tf.CLIPVisionModelWithProjection(config).train()
    model = adapt(backbone, spatial=False, joint=False).eval()
    once, again = (model(zoo.make_clips()).image_embeds for _ in range(2))
    assert torch.equal(once, again)
    model.train()
    for layer in layers(model):  # without spatial adapters, only temporal attention differs
        layer.base_layer.self_attn.register_forward_pre_hook(lambda module, args: module.eval() and None)
        layer.base_layer.self_attn.register_forward_hook(lambda module, *_: module.train() and None)
    once, again = (model(zoo.make_clips()).image_embeds for _ in range(2))
    assert not torch.equal(once, again)


class DropsBehind(Attention):
    """Dropout behind the projection that no module tells of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


def test_what_has_something_behind_its_projection_has_no_output_to_multiply():
    assert find_output(plain, Attention(8, 2).double(), 8) == "proj"
    assert find_output(plain, Attention(8, 2, proj_drop=0.5).double(), 8) is None
    assert find_output(plain, DropsBehind(8, 2).double(), 8) is None


def test_a_projection_that_somebody_replaced_is_the_one_that_counts():
    model = adapt(zoo.build("timm_vit")).eval()
    before = model(zoo.make_clips())
    for layer in layers(model):
        layer.base_layer.attn.proj = nn.Linear(32, 32)
    scores = model(zoo.make_clips())
    assert torch.allclose(scores, in_two(model), atol=1e-5) and not torch.allclose(scores, before)


def prune_down(layer: AIMLayer) -> None:
    prune.l1_unstructured(layer.aim_temporal_down["default"], "weight", amount=0.5)


def hook_down(layer: AIMLayer) -> None:
    layer.aim_temporal_down["default"].register_forward_hook(lambda module, args, output: 2 * output)


def halve(layer: AIMLayer) -> None:
    layer.aim_temporal_down["default"].bfloat16(), layer.aim_temporal_up["default"].bfloat16()


@pytest.mark.parametrize("change", [prune_down, hook_down, halve], ids=lambda change: change.__name__)
def test_layers_that_somebody_changed_run_one_after_the_other(change):
    model = adapt(zoo.build("timm_vit")).eval()
    for layer in layers(model):
        change(layer)
    for _ in range(2):
        scores = model(zoo.make_clips())
        scores.sum().backward()
    assert torch.equal(scores, in_two(model))
