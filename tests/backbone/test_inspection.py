"""What the inspection of a backbone finds, and the errors it raises."""

from __future__ import annotations

import random
import warnings

import home_made
import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers as tf
import zoo
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.measuring.counting import Alive, gmac
from peft_aim import AIMConfig
from peft_aim.attention.kinds import USERS_KINDS, along_time
from peft_aim.backbone.anatomy import PartNames
from peft_aim.backbone.inspection import inspect_backbone
from peft_aim.tracing.copies import traits
from peft_aim.tracing.example import blank_images, image_size


def adapt(model: nn.Module, **options: object) -> nn.Module:
    return get_peft_model(model, AIMConfig(**options))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm_vit", ("", None, "head")),
        ("timm_clip", ("", "norm_pre", "head")),
        ("timm_swin", ("", None, "head.fc")),  # its patch embedding ends with a norm, which is none of the trunk
        ("hf_clip", ("", "vision_model.pre_layrnorm", "classifier")),
        ("hf_dinov3", ("", None, None)),
        ("torchvision_vit", ("", None, "heads.head")),
        ("open_clip_vit", ("", "ln_pre", None)),
    ],
)
def test_inspection(name, expected):
    found = inspect_backbone(zoo.build(name), PartNames())
    assert (found.tower, *found.entries.values(), found.head) == expected
    assert found.image == (3, 32, 32) and not found.further and not found.rejected


def test_final_norms_are_those_that_the_output_depends_on():
    """transformers' CLIP classifies the average of all tokens, and normalizes the class token alone."""
    assert inspect_backbone(zoo.build("hf_clip")).final_norms == []
    assert inspect_backbone(zoo.build("hf_vit")).final_norms == ["vit.layernorm"]


def test_image_tower_of_a_model_of_images_and_text():
    found = inspect_backbone(zoo.open_clip_model(), PartNames())
    assert found.tower == "visual"
    assert list(found.blocks) == ["visual.transformer.resblocks.0", "visual.transformer.resblocks.1"]


def test_inspection_restores_modes_and_hooks():
    model = zoo.build("timm_vit").train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    inspect_backbone(model, PartNames())
    assert [module.training for module in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_image_size():
    assert image_size(timm.create_model("vit_tiny_patch16_224", img_size=(48, 32), depth=1)) == (48, 32)
    assert image_size(zoo.build("hf_clip")) == (32, 32)
    assert image_size(nn.Linear(1, 1)) == (224, 224)


def test_all_declared_image_sizes_are_tried():
    """transformers' LW-DETR names the size that it was pretrained on before the one it is built for."""
    model = zoo.build("timm_vit")
    model.head.image_size = 48  # declared by a part, but the position embedding is for 32
    model.image_size = (16, 16)
    sizes = [tuple(next(iter(images.values())).shape[2:]) for images in blank_images(model)]
    assert sizes[0] == (16, 16) and {(32, 32), (48, 48)} <= {*sizes}
    assert inspect_backbone(model).image == (3, 32, 32)


def test_grey_images():
    model = adapt(timm.create_model("vit_tiny_patch16_224", in_chans=1, img_size=32, depth=1), num_frames=2)
    assert model(torch.zeros(1, 2, 1, 32, 32)).shape == (1, 1000)
    with pytest.raises(ValueError, match="3 channels where the model takes 1"):
        model(torch.zeros(1, 2, 3, 32, 32))


# Errors.


@pytest.mark.parametrize("build", [lambda: timm.create_model("resnet10t"), torchvision.models.mobilenet_v3_small])
def test_convolutional_networks_are_rejected(build):
    with pytest.raises(
        ValueError, match="(?s)has no block that AIM can adapt.*temporal='auto', which adapts .* by a convolution"
    ):
        adapt(build())


def test_convnext_is_rejected_with_the_reason():
    model = timm.create_model("test_convnext")
    with pytest.raises(
        ValueError, match=r"stages.0.blocks.0, .*: Conv2d cannot be used as temporal attention .*on positions"
    ):
        adapt(model)


def test_models_without_images_are_rejected():
    with pytest.raises(ValueError, match="No module in BertModel takes images only: it has no Conv2d"):
        adapt(tf.BertModel(tf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mobilevitv2_050", r"transformer.0, .*: its norm norm1, a GroupNorm1, normalizes over all spatial positions"),
        ("mixer_s32_224", r"Mlp cannot be used .*no kind fits tokens \(2, 512, 49\) with channels on axis 1"),
        ("convformer_s18", r"SepConv cannot be used as temporal attention .*: the result depends on positions"),
    ],
)
def test_other_token_mixers_are_rejected_with_the_reason(name, reason):
    with pytest.raises(ValueError, match=reason):
        adapt(timm.create_model(name))


def test_partly_adaptable_models_need_target_modules():
    model = Toy(Block(attention()), Parallel(attention()))
    message = r"(?s)can adapt 1 blocks .* but not these:\n  blocks.1: its MLP .*pass target_modules="
    with pytest.raises(ValueError, match=message):
        adapt(model)
    adapted = adapt(model, target_modules=r"blocks\.0", num_frames=2)
    assert adapted(torch.zeros(1, 2, 3, 32, 32)).shape == (1, 2)


def test_skipped_blocks_are_reported():
    model = timm.create_model("cait_xxs24_224", img_size=32, embed_dim=32, num_heads=2, depth=2)
    with pytest.warns(UserWarning, match=r"(?s)adapts 2 of 4 blocks .*: it maps tokens \(2, 4, 32\) to \(2, 1, 32\)"):
        adapted = adapt(model, num_frames=2)
    assert adapted(torch.zeros(1, 2, 3, 32, 32)).shape == (1, 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(adapted.unload(), target_modules=r"blocks\.\d")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_patch_dropout_is_rejected(name):
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 1}
    model = timm.create_model(name, **size, patch_drop_rate=0.5)
    with pytest.raises(
        ValueError, match=r"blocks.0 receives tokens \(2, .* in training, .* evaluation.*patch_drop_rate=0"
    ):
        adapt(model)


def test_random_masking_is_rejected():
    with pytest.raises(ValueError, match="ViTMAEModel returns different outputs for two copies of one image"):
        adapt(tf.ViTMAEModel(tf.ViTMAEConfig(**zoo.SMALL)))


class Remembering(nn.Module):
    """Remembers its calls in every way that a module can, and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.total, self.by_shape, self.calls = torch.zeros(1), {"sizes": [0]}, 0

    def forward(self, x):
        self.count += len(x) * self.training
        self.total += 1
        self.calls += 1
        self.last, self.by_shape[x.shape] = x, x.mean()
        self.by_shape["sizes"].append(len(x))
        noise = torch.rand(()).item() + random.random() + np.random.rand()
        return x + 0 * noise

    def memory(self) -> str:
        return repr(({name: value for name, value in vars(self).items() if not name.startswith("_")}, self.count))


class RememberingFoo(home_made.Foo):
    def __init__(self):
        super().__init__()
        self.memory = Remembering()

    def forward(self, x):
        return super().forward(self.memory(x))


@pytest.mark.parametrize("training", [True, False])
def test_attaching_leaves_no_trace(training):
    model = nn.Sequential(nn.BatchNorm2d(3), Remembering(), zoo.build("timm_vit"))
    trunk = home_made.Pairs(RememberingFoo, home_made.FeedForward)
    model[2].blocks = nn.Sequential(trunk, *model[2].blocks)
    spectral_norm(model[2].head)
    model[2].image_size = (32, 32)
    model.train(training)

    def state() -> list[str]:
        modes = [module.training for module in model.modules()]
        hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
        memories = [module.memory() for module in model.modules() if isinstance(module, Remembering)]
        return list(map(repr, [model.state_dict(), modes, hooks, *memories]))

    def drawn() -> list[str]:
        return [repr(torch.get_rng_state().tolist()), repr(random.getstate()), repr(np.random.get_state())]

    before = state(), drawn()
    found = inspect_backbone(model, PartNames())
    assert "2.blocks.0.layers.0.0" in found.blocks and "2.blocks.1" in found.blocks
    assert (state(), drawn()) == before
    model = adapt(model).unload()  # which draws the new weights
    assert state() == before[0]


def test_user_hooks_run_only_in_spatial_attention():
    model, seen = zoo.build("timm_vit"), []
    model.blocks[0].attn.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape)))
    adapted = adapt(model)
    seen.clear()
    adapted(zoo.make_clips())
    assert seen == [(8, 17, 32)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["layers.7"]}, r"(?s)target_modules=.* matches no module.*blocks of this .* are 'blocks"),
        ({"target_modules": ["attn"]}, r"matches blocks.0.attn, blocks.1.attn, blocks.2.attn, which AIM cannot adapt"),
        ({"target_modules": r"blocks\..*"}, r"matches blocks.0.norm1"),
        ({"exclude_modules": r"blocks\.\d"}, "No block is left: target_modules=None, exclude_modules="),
        ({"layers_to_transform": 3}, "selects block 3, but VisionTransformer has 3 blocks, 0 to 2"),
        ({"attention_module": "self_attn"}, "it does not call attention_module='self_attn', only norm1, attn, "),
        ({"num_labels": 2, "modules_to_save": ["head"]}, "contains the head 'head', which num_labels=2 replaces"),
    ],
    ids=str,
)
def test_wrong_targets_are_rejected(options, message):
    model = zoo.build("timm_vit")
    before = repr(model)
    with pytest.raises(ValueError, match=message):
        adapt(model, **options)
    assert repr(model) == before and not hasattr(model, "aim_clips")


@pytest.mark.parametrize("name", ["open_clip_vit", "hf_dinov3"])
def test_models_without_a_slot_for_the_head_are_rejected(name):
    message = r"num_labels=2 adds a head, but .* has no slot for one.*nn.Sequential\(model, nn.Linear"
    with pytest.raises(ValueError, match=message):
        adapt(zoo.build(name), num_labels=2)


def test_a_head_after_a_headless_model():
    model = adapt(nn.Sequential(zoo.build("open_clip_vit"), nn.Linear(24, 2)), num_labels=3)
    assert model(zoo.make_clips()).shape == (2, 3)


class Block(nn.Module):
    """A block as usual."""

    def __init__(self, attention: nn.Module, repeats: int = 1):
        super().__init__()
        self.pre, self.attention, self.post = nn.LayerNorm(8), attention, nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.repeats = repeats

    def forward(self, x):
        h = self.pre(x)
        for _ in range(self.repeats):
            h = self.attention(h, h, h, need_weights=False)[0]
        x = x + h
        return x + self.mlp(self.post(x))


class Toy(nn.Module):
    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(3, 8, 8, 8), nn.Sequential(*blocks), nn.Linear(8, 2)
        self.image_size = (32, 32)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


class NoResidual(Block):
    def forward(self, x):
        h = self.pre(x)
        return self.mlp(self.post(self.attention(h, h, h)[0]))


class OpenEnd(Block):
    def forward(self, x):
        h = self.pre(x)
        return self.mlp(self.post(x + self.attention(h, h, h)[0]))


class Parallel(Block):
    def forward(self, x):
        h = self.pre(x)
        return x + self.attention(h, h, h)[0] + self.mlp(self.post(x))


class Flipped(Block):
    def forward(self, x):
        h = x.flip(1) + 0 * self.pre(x)
        x = x + self.attention(h, h, h)[0]
        return x + self.mlp(self.post(x))


class ByKeyword(Block):
    """An unusual but valid block: attention called by keyword, and a scaled skip connection."""

    def forward(self, x):
        h = self.pre(x)
        x = 0.5 * x + self.attention(query=h, key=h, value=h)[0]
        return x + self.mlp(self.post(x))


class Scaled(nn.MultiheadAttention):
    def forward(self, scale, x):
        return super().forward(scale * x, x, x)


class ByScale(Block):
    def forward(self, x):
        x = x + self.attention(2.0, self.pre(x))[0]
        return x + self.mlp(self.post(x))


class Gated(Block):
    """With a gate on the attention's output that is still closed."""

    def __init__(self, *args):
        super().__init__(*args)
        self.gamma = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        h = self.pre(x)
        x = x + self.gamma * self.attention(h, h, h)[0]
        return x + self.mlp(self.post(x))


class WithLoss(nn.Module):
    """Needs labels in training."""

    def __init__(self):
        super().__init__()
        self.model = zoo.build("timm_vit")

    def forward(self, x, labels=None):
        scores = self.model(x)
        return nn.functional.cross_entropy(scores, labels) if self.training else scores


class TwoTrunks(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = Toy(Block(attention())), Toy(Block(attention()))
        self.image_size = (32, 32)

    def forward(self, x):
        return self.one(x) + self.other(x)


def attention() -> nn.Module:
    return nn.MultiheadAttention(8, 2, batch_first=True)


def test_naming_its_parts_vouches_for_a_block():
    model, clips = Toy(Parallel(attention())), zoo.make_clips()
    with pytest.raises(ValueError, match=r"(?s)blocks.0: its MLP branch runs in parallel.*pass norm1_module"):
        adapt(model)
    assert adapt(model, attention_module="attention", mlp_module="mlp")(clips).shape == (2, 2)


class WithGate(Block):
    """Has a gate on its attention, and a depthwise convolution before it."""

    def __init__(self, attention: nn.Module):
        super().__init__(attention)
        self.gate, self.conv = nn.Linear(8, 8), nn.Conv1d(8, 8, 3, padding=1, groups=8)

    def forward(self, x):
        x = x + self.conv(x.mT).mT
        h = self.pre(x)
        x = x + self.attention(h, h, h)[0] * self.gate(x).sigmoid()
        return x + self.mlp(self.post(x))


def test_blocks_may_have_other_parts():
    model, clips = adapt(Toy(WithGate(attention())), init_weights=False), zoo.make_clips()
    assert model.base_model.model.aim_clips.inspection.blocks["blocks.0"].others == ("conv", "gate")
    assert not torch.allclose(model(clips), model(clips.flip(1)))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (NoResidual, "the input of its MLP branch is not the input of the block plus the output of the attention"),
        (OpenEnd, "its output is not the input of the MLP branch plus the output of that branch"),
        (Parallel, "its MLP branch runs in parallel to its attention, not after it"),
        (Flipped, "besides its attention attention, its own forward mixes spatial positions"),
    ],
)
def test_other_residual_structures_are_rejected(block, reason):
    with pytest.raises(ValueError, match=f"blocks.0: {reason}"):
        adapt(Toy(block(attention())))


def test_blocks_may_call_by_keyword_and_scale_their_skip():
    model, clips = adapt(Toy(ByKeyword(attention())), init_weights=False), zoo.make_clips()
    scores = model(clips)
    scores.sum().backward()
    assert not torch.allclose(scores, model(clips.flip(1)))


def test_attention_has_to_take_tokens_first():
    with pytest.raises(
        ValueError, match="blocks.0: none of its parts that could be attention takes tokens as its first argument"
    ):
        adapt(Toy(ByScale(Scaled(8, 2, batch_first=True))))


def test_closed_gates_and_compiled_blocks():
    blocks = [Gated(attention()), Block(attention()), Gated(attention())]
    model = Toy(*blocks)
    model.blocks[1].compile(backend="eager")
    assert len(adapt(model).base_model.model.aim_clips.inspection.blocks) == 3


def test_models_that_need_labels_in_training_are_adapted():
    model = adapt(WithLoss().eval(), num_frames=4)
    assert model(zoo.make_clips()).shape == (2, 5)


def test_parallel_trunks_have_a_temporal_embedding_each():
    model = adapt(TwoTrunks())
    found = model.base_model.model.aim_clips.inspection
    assert found.entries == {"one.blocks.0": None, "other.blocks.0": None}
    assert sum("temporal_embedding" in name for name, _ in model.named_parameters()) == 2


@pytest.mark.parametrize("name", ["timm_swin", "timm_beit", "hf_swin", "torchvision_swin", "torchvision_vit"])
def test_backbones_on_meta_are_adapted_alike(name):
    with torch.device("meta"):
        empty = zoo.ZOO[name]()
    adapted, expected = adapt(empty, num_labels=3), adapt(zoo.build(name), num_labels=3)
    assert adapted.get_nb_trainable_parameters() == expected.get_nb_trainable_parameters()
    kinds = [list(model.base_model.model.aim_clips.inspection.blocks.values()) for model in (adapted, expected)]
    assert kinds[0] == kinds[1]


def test_other_peft_adapters_in_the_backbone_are_rejected():
    clips = zoo.make_clips()
    model = get_peft_model(zoo.build("timm_vit"), LoraConfig(target_modules=["qkv"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, of a second time
        with pytest.raises(ValueError, match="The backbone is a PeftModel already.*merge_and_unload"):
            adapt(model)
        with pytest.raises(ValueError, match="'blocks.0.attn.qkv' is a Linear of another PEFT method"):
            adapt(model.base_model.model)
    model = adapt(zoo.build("timm_vit"))
    before = model(clips)
    for again in (model, model.base_model.model):
        with pytest.raises(ValueError, match="already"), pytest.warns(UserWarning, match="for a second time"):
            adapt(again, target_modules=["nowhere"])
    assert list(model.peft_config) == ["default"]
    assert torch.equal(model(clips), before)


@pytest.mark.parametrize("name", ["blocks.0.attn", "norm1", "mlp", "blocks.1", "blocks"])
def test_adapted_blocks_cannot_be_saved_as_a_whole(name):
    with pytest.raises(
        ValueError, match=r"matches blocks.*, which overlaps .* that AIM adapts.*At its top level, .* norm"
    ):
        adapt(zoo.build("timm_vit"), modules_to_save=[name])


def test_wrong_modules_to_save_are_rejected():
    with pytest.raises(ValueError, match="matches no module"):
        adapt(zoo.build("timm_vit"), modules_to_save=["nowhere"])
    with pytest.raises(ValueError, match="matches norm_pre"):
        adapt(zoo.build("timm_clip"), modules_to_save=["norm_pre"])
    model = adapt(zoo.build("timm_vit"), modules_to_save=["blocks.2"], layers_to_transform=[0, 1])
    assert any("blocks.2" in key and p.requires_grad for key, p in model.named_parameters())


def test_parts_that_run_more_than_once_are_rejected():
    with pytest.raises(ValueError, match="blocks.0: it calls attention more than once"):
        adapt(Toy(Block(attention(), repeats=2)))
    shared = attention()
    with pytest.raises(ValueError, match="blocks.1: it shares blocks.0.attention with another block"):
        adapt(Toy(Block(shared), Block(shared)))
    block = Block(attention())
    with pytest.raises(ValueError, match="blocks.0: it is one module with several names, blocks.0 and blocks.1"):
        adapt(Toy(block, block))


def test_a_temporal_embedding_is_not_added_several_times():
    class Looped(Toy):
        def forward(self, x):
            x = self.stem(x).flatten(2).transpose(1, 2)
            return self.head(self.blocks(self.blocks(x)).mean(1))

    text = r"(?s)enter blocks.0, but this runs 2 times in a forward pass.* temporal_embedding='blocks'"
    with pytest.raises(ValueError, match=text):
        adapt(Looped(Block(attention())))
    model = adapt(Looped(Block(attention())), temporal_embedding="blocks")
    assert [*model.peft_config["default"].branches] == ["blocks.0"]


def test_a_block_that_runs_on_tokens_of_several_shapes_is_rejected():
    class Pyramid(Toy):
        def forward(self, x):
            x = self.stem(x).flatten(2).transpose(1, 2)
            return self.head(self.blocks(self.blocks(x)[:, ::2]).mean(1))

    with pytest.raises(
        ValueError, match=r"blocks.0: it runs on tokens \(2, 16, 8\) and \(2, 8, 8\) in one forward pass"
    ):
        adapt(Pyramid(Block(attention())))


def test_explicit_part_names():
    names = {"norm1_module": "norm1", "attention_module": "attn", "norm2_module": "norm2", "mlp_module": "mlp"}
    model = adapt(zoo.build("timm_vit"), **names)
    assert model(zoo.make_clips()).shape == (2, 5)
    with pytest.raises(ValueError, match="mlp_module='attn' is not the module that the existing adapters use, mlp"):
        model.add_adapter("other", AIMConfig(mlp_module="attn"))


# Cost.


@pytest.mark.parametrize("depth", [3, 12])
@pytest.mark.parametrize("drop_path", [0.0, 0.1])
def test_attaching_costs_two_images_at_most_at_any_depth(depth, drop_path):
    options = {"embed_dim": 192, "num_heads": 3, "depth": depth, "drop_path_rate": drop_path}
    model = timm.create_model("vit_tiny_patch16_224", **options).requires_grad_(False).eval()
    of_image = gmac(lambda: model(torch.zeros(1, 3, 224, 224)))
    ratio = gmac(lambda: adapt(model)) / of_image
    assert ratio <= 2.2 and (depth == 3 or ratio <= 1)  # of copies, one runs


def test_attaching_costs_two_images_at_most_where_every_stage_is_different():
    model = timm.create_model("levit_128s", num_classes=0).requires_grad_(False).eval()
    of_image = gmac(lambda: model(torch.zeros(1, 3, 224, 224)))
    with pytest.warns(UserWarning, match="downsampling"):
        assert gmac(lambda: adapt(model)) <= 2.2 * of_image


def test_a_block_that_differs_is_probed_on_its_own():
    """A copy of a sound block does not vouch for one that only resembles it."""
    model = Toy(Block(attention()), Block(attention()), Parallel(attention()))
    found = inspect_backbone(model)
    assert list(found.blocks) == ["blocks.0", "blocks.1"] and list(found.rejected) == ["blocks.2"]


class Recounting(nn.Module):
    """Counts its runs outside of itself."""

    def __init__(self, model: nn.Module, runs: list[int]) -> None:
        super().__init__()
        self.model, self.image_size = model, (32, 32)
        self.register_forward_pre_hook(lambda *_: runs.append(1))

    def forward(self, x):
        return self.model(x)


def test_a_model_is_inspected_once(tmp_path):
    runs: list[int] = []
    model = Recounting(zoo.build("timm_vit"), runs)
    adapted = adapt(model, num_frames=4, num_labels=2)
    assert runs
    runs.clear()
    adapted.add_adapter("other", AIMConfig(temporal_adapters=2))
    adapted.save_pretrained(tmp_path)
    model = adapted.unload()
    loaded = PeftModel.from_pretrained(model, tmp_path)
    adapt(loaded.unload())
    assert len(runs) == 3  # each new adapter is checked by one run


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "blocks", model.blocks[:2]),
        lambda model: setattr(model.blocks[1], "attn", nn.Identity()),
        lambda model: setattr(model, "image_size", (64, 64)),
        lambda model: model.head.register_buffer("mask", torch.ones(1)),
        lambda model: model.double(),
    ],
)
def test_a_model_that_has_changed_is_inspected_again(change):
    model = zoo.build("timm_vit")
    inspect_backbone(model)
    before = traits(model)
    assert traits(model) == before
    change(model)
    assert traits(model) != before


def test_a_kind_that_a_user_registers_counts_at_once():
    class Biased(nn.MultiheadAttention):
        def forward(self, query, key, value, bias=None, **kwargs):
            query = query + torch.arange(query.shape[1])[:, None] if bias is None else query
            return super().forward(query, query, query, need_weights=False)

    model = Toy(Block(Biased(8, 2, batch_first=True)))
    with pytest.raises(ValueError, match="Biased cannot be used as temporal attention"):
        adapt(model)
    try:
        along_time(Biased)(lambda attention, x: attention.forward(x, x, x, bias=0)[0])
        assert inspect_backbone(model).blocks
    finally:
        USERS_KINDS.clear()
    with pytest.raises(ValueError, match="Biased cannot be used as temporal attention"):
        adapt(model)


def test_inspection_takes_no_more_memory_than_a_block_and_two_images():
    model = timm.create_model("vit_base_patch16_224", depth=3).requires_grad_(False).eval()
    with torch.no_grad(), Alive() as forward:
        model(torch.zeros(2, 3, 224, 224))
    with Alive() as inspection:
        inspect_backbone(model)
    block = sum(parameter.numel() * parameter.element_size() for parameter in model.blocks[0].parameters())
    assert inspection.peak <= block + forward.peak
