"""What is found in a backbone, and what is said when it is not there."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
import torchvision
import transformers as tf
import zoo
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from peft_aim import AIMConfig
from peft_aim.backbone.anatomy import PartNames
from peft_aim.backbone.inspection import inspect_backbone
from peft_aim.tracing.example import image_size


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
def test_survey(name, expected):
    found = inspect_backbone(zoo.build(name), PartNames())
    assert (found.tower, *found.entries.values(), found.head) == expected
    assert found.image == (3, 32, 32) and not found.further and not found.refused


def test_the_image_tower_of_a_model_of_image_and_text():
    found = inspect_backbone(zoo.open_clip_model(), PartNames())
    assert found.tower == "visual"
    assert list(found.blocks) == ["visual.transformer.resblocks.0", "visual.transformer.resblocks.1"]


def test_surveying_leaves_no_trace():
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


def test_grey_images():
    model = adapt(timm.create_model("vit_tiny_patch16_224", in_chans=1, img_size=32, depth=1), num_frames=2)
    assert model(torch.zeros(1, 2, 1, 32, 32)).shape == (1, 1000)
    with pytest.raises(ValueError, match="3 channels where the model takes 1"):
        model(torch.zeros(1, 2, 3, 32, 32))


# Refusals.


@pytest.mark.parametrize("build", [lambda: timm.create_model("resnet10t"), torchvision.models.mobilenet_v3_small])
def test_convolutional_networks_are_refused(build):
    with pytest.raises(ValueError, match="(?s)No block that AIM can adapt.*a convolutional network cannot be adapted"):
        adapt(build())


def test_convnext_is_refused_with_what_was_seen():
    model = timm.create_model("test_convnext")
    with pytest.raises(ValueError, match=r"stages.0.blocks.0: Conv2d cannot be run along time .*on positions"):
        adapt(model)


def test_models_without_images_are_refused():
    with pytest.raises(ValueError, match="No module in BertModel takes images alone: it has no Conv2d"):
        adapt(tf.BertModel(tf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mobilevitv2_050", r"transformer.0, .*: its norm norm1, a GroupNorm1, is one over all places"),
        ("tnt_s_patch16_224", "blocks.0, .* and 8 more: besides attn_in it calls another attention, attn_out"),
        ("mixer_s32_224", r"Mlp cannot be run .* known for tokens \(2, 512, 49\) with channels on axis 1"),
        ("convformer_s18", r"SepConv cannot be run along time .*: the result depends on positions"),
    ],
)
def test_other_token_mixers_are_refused_with_the_reason(name, reason):
    with pytest.raises(ValueError, match=reason):
        adapt(timm.create_model(name))


def test_partly_adaptable_models_want_a_word_from_the_user():
    model = Toy(Block(attention()), Parallel(attention()))
    with pytest.raises(ValueError, match=r"(?s)can adapt 1 blocks .* but not these:\n  blocks.1: its MLP .*say so"):
        adapt(model)
    adapted = adapt(model, target_modules=r"blocks\.0", num_frames=2)
    assert adapted(torch.zeros(1, 2, 3, 32, 32)).shape == (1, 2)


def test_blocks_that_are_left_out_on_purpose_are_told():
    model = timm.create_model("cait_xxs24_224", img_size=32, embed_dim=32, num_heads=2, depth=2)
    with pytest.warns(UserWarning, match=r"(?s)adapts 2 of 4 blocks .*: it makes \(2, 1, 32\) of"):
        adapted = adapt(model, num_frames=2)
    assert adapted(torch.zeros(1, 2, 3, 32, 32)).shape == (1, 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(adapted.unload(), target_modules=r"blocks\.\d")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_dropped_patches_are_refused(name):
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 1}
    model = timm.create_model(name, **size, patch_drop_rate=0.5)
    with pytest.raises(ValueError, match=r"blocks.0 sees tokens \(2, .* in training .* evaluation.*patch_drop_rate=0"):
        adapt(model)


def test_patches_masked_at_random_are_refused():
    with pytest.raises(ValueError, match="ViTMAEModel returns other values for one image than for its copy"):
        adapt(tf.ViTMAEModel(tf.ViTMAEConfig(**zoo.SMALL)))


class Counting(nn.Module):
    """Counts the images it has been trained on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += len(x) * self.training
        return x


def test_the_look_at_a_model_leaves_no_trace():
    model = nn.Sequential(nn.BatchNorm2d(3), Counting(), zoo.build("timm_vit")).train()
    spectral_norm(model[2].head)
    model[2].image_size = (32, 32)
    before, drawn = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    inspect_backbone(model, PartNames())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_of_others_fire_for_the_blocks_own_call_alone():
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
        ({"layers_to_transform": 3}, "asks for block 3, but VisionTransformer has 3 blocks, 0 to 2"),
        ({"attention_module": "self_attn"}, "attention_module='self_attn' is not called there; norm1, attn, .* is"),
        ({"num_labels": 2, "modules_to_save": ["head"]}, "holds the head 'head', which num_labels=2 replaces"),
    ],
    ids=str,
)
def test_wrong_targets_are_refused(options, message):
    model = zoo.build("timm_vit")
    before = repr(model)
    with pytest.raises(ValueError, match=message):
        adapt(model, **options)
    assert repr(model) == before and not hasattr(model, "aim_clips")


@pytest.mark.parametrize("name", ["open_clip_vit", "hf_dinov3"])
def test_a_head_where_there_is_none_is_refused(name):
    with pytest.raises(ValueError, match=r"num_labels=2 asks for a head, but .*nn.Sequential\(model, nn.Linear"):
        adapt(zoo.build(name), num_labels=2)


def test_a_head_behind_a_headless_model():
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
    """Not an image's usual block, but a sound one: attention by keyword, and a learned scale on the skip."""

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
    """With a gate on the attention's result that is closed as yet."""

    def __init__(self, *args):
        super().__init__(*args)
        self.gamma = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        h = self.pre(x)
        x = x + self.gamma * self.attention(h, h, h)[0]
        return x + self.mlp(self.post(x))


class WithLoss(nn.Module):
    """Wants labels in training."""

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


def test_a_block_that_structure_does_not_explain_can_be_explained():
    model, clips = Toy(Parallel(attention())), zoo.make_clips()
    with pytest.raises(
        ValueError, match=r"(?s)blocks.0: its MLP branch .* as in a parallel.*name them with norm1_module"
    ):
        adapt(model)
    assert adapt(model, attention_module="attention", mlp_module="mlp")(clips).shape == (2, 2)


class WithGate(Block):
    """Has a gate beside its attention, and a convolution of one channel each before it."""

    def __init__(self, attention: nn.Module):
        super().__init__(attention)
        self.gate, self.conv = nn.Linear(8, 8), nn.Conv1d(8, 8, 3, padding=1, groups=8)

    def forward(self, x):
        x = x + self.conv(x.mT).mT
        h = self.pre(x)
        x = x + self.attention(h, h, h)[0] * self.gate(x).sigmoid()
        return x + self.mlp(self.post(x))


def test_blocks_may_have_further_parts():
    model, clips = adapt(Toy(WithGate(attention())), init_weights=False), zoo.make_clips()
    assert model.base_model.model.aim_clips.inspection.blocks["blocks.0"].others == ("conv", "gate")
    assert not torch.allclose(model(clips), model(clips.flip(1)))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (NoResidual, "its MLP branch doesn't get its input plus what its attention branch returns"),
        (OpenEnd, "it doesn't return what its MLP branch got plus what that returns"),
        (Parallel, "its MLP branch doesn't see what its attention adds, as in a parallel block"),
        (Flipped, "its attention is not called on what its first norm returns"),
    ],
)
def test_blocks_that_add_up_otherwise_are_refused(block, reason):
    with pytest.raises(ValueError, match=f"blocks.0: {reason}"):
        adapt(Toy(block(attention())))


def test_blocks_may_call_by_keyword_and_scale_their_skip():
    model, clips = adapt(Toy(ByKeyword(attention())), init_weights=False), zoo.make_clips()
    scores = model(clips)
    scores.sum().backward()
    assert not torch.allclose(scores, model(clips.flip(1)))


def test_attention_that_does_not_take_tokens_first_is_refused():
    with pytest.raises(ValueError, match="blocks.0: nothing that could be attention is called, on tokens first"):
        adapt(Toy(ByScale(Scaled(8, 2, batch_first=True))))


def test_gates_may_be_closed_and_trunks_compiled():
    blocks = [Gated(attention()), Block(attention()), Gated(attention())]
    model = Toy(*blocks)
    model.blocks[1].compile(backend="eager")
    assert len(adapt(model).base_model.model.aim_clips.inspection.blocks) == 3


def test_models_that_want_labels_in_training_are_adapted():
    model = adapt(WithLoss().eval(), num_frames=4)
    assert model(zoo.make_clips()).shape == (2, 5)


def test_trunks_beside_each_other_have_a_temporal_embedding_each():
    model = adapt(TwoTrunks())
    found = model.base_model.model.aim_clips.inspection
    assert found.entries == {"one.blocks.0": None, "other.blocks.0": None}
    assert sum("temporal_embedding" in name for name, _ in model.named_parameters()) == 2


@pytest.mark.parametrize("name", ["timm_swin", "timm_beit", "hf_swin", "torchvision_swin", "torchvision_vit"])
def test_backbones_without_memory_are_adapted_alike(name):
    with torch.device("meta"):
        empty = zoo.ZOO[name]()
    adapted, expected = adapt(empty, num_labels=3), adapt(zoo.build(name), num_labels=3)
    assert adapted.get_nb_trainable_parameters() == expected.get_nb_trainable_parameters()
    kinds = [list(model.base_model.model.aim_clips.inspection.blocks.values()) for model in (adapted, expected)]
    assert kinds[0] == kinds[1]


def test_what_peft_has_put_in_before_is_refused():
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
    with pytest.raises(ValueError, match=r"matches blocks.*, which belongs to what AIM adapts.*At its top .* norm"):
        adapt(zoo.build("timm_vit"), modules_to_save=[name])


def test_modules_to_save_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="matches no module"):
        adapt(zoo.build("timm_vit"), modules_to_save=["nowhere"])
    with pytest.raises(ValueError, match="matches norm_pre"):
        adapt(zoo.build("timm_clip"), modules_to_save=["norm_pre"])
    model = adapt(zoo.build("timm_vit"), modules_to_save=["blocks.2"], layers_to_transform=[0, 1])
    assert any("blocks.2" in key and p.requires_grad for key, p in model.named_parameters())


def test_parts_that_are_called_more_often_than_once_are_refused():
    with pytest.raises(ValueError, match="blocks.0: it calls attention more than once"):
        adapt(Toy(Block(attention(), repeats=2)))
    shared = attention()
    with pytest.raises(ValueError, match="blocks.1: it shares blocks.0.attention with another block"):
        adapt(Toy(Block(shared), Block(shared)))
    block = Block(attention())
    with pytest.raises(ValueError, match="blocks.0: it runs more than once in a forward pass"):
        adapt(Toy(block, block))


def test_explicit_part_names():
    names = {"norm1_module": "norm1", "attention_module": "attn", "norm2_module": "norm2", "mlp_module": "mlp"}
    model = adapt(zoo.build("timm_vit"), **names)
    assert model(zoo.make_clips()).shape == (2, 5)
    with pytest.raises(ValueError, match="mlp_module='attn' is not what the adapters that are already there use, mlp"):
        model.add_adapter("other", AIMConfig(mlp_module="attn"))
