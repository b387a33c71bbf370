"""Official checkpoints, in a transcription of their layout, become adapters that score as the official code does."""

from __future__ import annotations

import math
import os
import pickle
import re
from pathlib import Path

import open_clip
import paper
import pytest
import timm
import torch
import transformers as tf
import zoo
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn

from peft_aim.convert import from_official
from peft_aim.example import image_size
from peft_aim.place_for_head import with_place_for_head

WIDTH, HEADS, DEPTH, PATCH, CLASSES, HIDDEN = 128, 2, 2, 8, 3, 24
TOKENS = (zoo.SIZE // PATCH) ** 2 + 1

# Official names, and the paper's transcription's (which are timm's), of both layouts.
CLIP = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1": "patch_embed.proj",
    "ln_pre": "norm_pre",
    "transformer.resblocks": "blocks",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
TRAINED = {
    "ln_post": "norm",
    "temporal_embedding": "embedding",
    "T_Adapter_in.": "temporal_in.",
    "T_Adapter.": "temporal.",
    "S_Adapter.": "spatial.",
    "MLP_Adapter.": "joint.",
    ".D_fc1": "_down",
    ".D_fc2": "_up",
}


def official(layout: str, temporal_adapters: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Draw a state dict in the official layout, adapters and all."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (noise / math.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 0.5 + 0.2 * noise).to(dtype)

    def layer(name: str, *shape: int) -> dict[str, Tensor]:
        return {f"{name}weight": draw(*shape), f"{name}bias": draw(shape[0])}

    clip, d = layout == "clip", WIDTH
    state = {"class_embedding": draw(d), "positional_embedding": draw(TOKENS, d)}
    state |= {"conv1.weight": draw(d, 3, PATCH, PATCH)}
    state |= layer("ln_pre.", d) if clip else {"conv1.bias": draw(d)}
    state |= {"temporal_embedding": draw(1, zoo.FRAMES, d), **layer("ln_post.", d)}
    for i in range(DEPTH):
        block = f"transformer.resblocks.{i}"
        state |= layer(f"{block}.attn.in_proj_", 3 * d, d) | layer(f"{block}.attn.out_proj.", d, d)
        state |= layer(f"{block}.ln_1.", d) | layer(f"{block}.ln_2.", d)
        state |= layer(f"{block}.mlp.c_fc.", 4 * d, d) | layer(f"{block}.mlp.c_proj.", d, 4 * d)
        for adapter in ("S_Adapter", "T_Adapter", "MLP_Adapter", "T_Adapter_in")[: 2 + temporal_adapters]:
            state |= layer(f"{block}.{adapter}.D_fc1.", HIDDEN, d) | layer(f"{block}.{adapter}.D_fc2.", d, HIDDEN)
    if not clip:
        state = renamed(state, CLIP)
        state["cls_token"], state["pos_embed"] = state["cls_token"].view(1, 1, d), state["pos_embed"][None]
    state = {f"backbone.{name}": tensor for name, tensor in state.items()}
    return state | layer("cls_head.fc_cls.", CLASSES, d)


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        result[name] = tensor
    return result


def transcribed(state: dict[str, Tensor]) -> paper.Weights:
    """Give official weights the names that the paper's transcription and timm have for them."""
    state = renamed(state, {"backbone.": "", "cls_head.fc_cls": "head", **CLIP, **TRAINED})
    return state | {
        "cls_token": state["cls_token"].view(1, 1, -1),
        "pos_embed": state["pos_embed"].view(1, TOKENS, -1),
    }


def expected(state: dict[str, Tensor], clips: Tensor, layout: str, scale: float = 0.5) -> Tensor:
    weights = transcribed(state)
    act, eps = (paper.quick_gelu, 1e-5) if layout == "clip" else (paper.gelu, 1e-6)
    return paper.vit(clips, weights, weights, depth=DEPTH, heads=HEADS, scale=scale, act=act, eps=eps)


def fill(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Load frozen weights under a library's own names; the final norm and the head stay as they were drawn."""
    model.to(next(iter(weights.values())).dtype).eval()  # before, or digits are lost
    left = model.load_state_dict({k: t.clone() for k, t in weights.items() if k in model.state_dict()}, strict=False)
    behind = ("norm.", "head.", "ln_post", "proj", "classifier", "layernorm.", "post_layernorm", "visual_projection")
    assert all(any(part in name for part in behind) for name in left.missing_keys), left.missing_keys
    return model


def frozen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: t for k, t in transcribed(state).items() if not k.startswith(("norm.", "head."))}


def split_qkv(weights: dict[str, Tensor], query: str, key: str, value: str) -> dict[str, Tensor]:
    result = {}
    for name, tensor in weights.items():
        for part, third in zip((query, key, value), tensor.chunk(3), strict=False):
            result[name.replace("attn.qkv", part)] = third if "attn.qkv" in name else tensor
    return result


SIZES = {"img_size": zoo.SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH}
TF_SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * WIDTH,
    "image_size": zoo.SIZE,
    "patch_size": PATCH,
}
TF_CLIP = {
    "cls_token": "vision_model.embeddings.class_embedding",
    "pos_embed": "vision_model.embeddings.position_embedding.weight",
    "patch_embed.proj": "vision_model.embeddings.patch_embedding",
    "norm_pre": "vision_model.pre_layrnorm",
    "blocks": "vision_model.encoder.layers",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
}


def timm_clip(state: dict[str, Tensor], variant: str = "_quickgelu", **options: object) -> nn.Module:
    options = {"num_heads": HEADS, "num_classes": 0, **options}
    return fill(timm.create_model(f"vit_base_patch16_clip{variant}_224", **SIZES, **options), frozen(state))


def tf_clip(state: dict[str, Tensor], kind: str = "projection", act: str = "quick_gelu") -> nn.Module:
    config = tf.CLIPVisionConfig(**TF_SIZES, hidden_act=act, projection_dim=24)
    if kind == "projection":
        model = tf.CLIPVisionModelWithProjection(config)
    else:
        model = tf.CLIPForImageClassification(tf.CLIPConfig(vision_config=config.to_dict(), num_labels=5))
    weights = frozen(state)
    weights |= {"cls_token": weights["cls_token"].flatten(), "pos_embed": weights["pos_embed"][0]}
    weights = split_qkv(weights, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    weights = renamed(weights, TF_CLIP)
    return fill(model, weights)


def open_clip_model(state: dict[str, Tensor], quick_gelu: bool = True, **options: object) -> nn.Module:
    vision = {
        "image_size": zoo.SIZE,
        "patch_size": PATCH,
        "width": WIDTH,
        "layers": DEPTH,
        "head_width": 64,
        **options,
    }
    text = {"context_length": 7, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
    model = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu)
    weights = {k.removeprefix("backbone."): t for k, t in state.items() if "ln_post" not in k}
    fill(model.visual, weights)
    return model.to(weights["conv1.weight"].dtype).eval()


def open_clip_tower(state: dict[str, Tensor]) -> nn.Module:
    return open_clip_model(state).visual


def timm_vit(state: dict[str, Tensor], **options: object) -> nn.Module:
    return fill(
        timm.create_model("vit_base_patch16_224", **SIZES, num_heads=HEADS, num_classes=5, **options), frozen(state)
    )


def tf_vit(state: dict[str, Tensor], act: str = "gelu") -> nn.Module:
    model = tf.ViTForImageClassification(tf.ViTConfig(**TF_SIZES, hidden_act=act, layer_norm_eps=1e-6, num_labels=5))
    weights, names = frozen(state), model.state_dict()
    old = any("intermediate" in name for name in names)  # transformers 4
    attention = "attention.attention.{}" if old else "attention.{}_proj"
    weights = split_qkv(weights, *(attention.format(part) for part in (("query", "key", "value") if old else "qkv")))
    renames = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "blocks": "vit.encoder.layer" if old else "vit.layers",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense" if old else "attention.o_proj",
    }
    renames |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"} if old else {}
    return fill(model, renamed(weights, renames))


BACKBONES = {
    "timm_clip": ("clip", timm_clip),
    "tf_clip": ("clip", tf_clip),
    "open_clip_model": ("clip", open_clip_model),
    "open_clip_tower": ("clip", open_clip_tower),
    "timm_vit": ("imagenet", timm_vit),
    "tf_vit": ("imagenet", tf_vit),
}


def scores(model: nn.Module, clips: Tensor) -> Tensor:
    with torch.no_grad():
        output = model(clips)
    return output if isinstance(output, Tensor) else output.get("logits", output.get("image_embeds"))


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and (a - b).abs().max() < tolerance * b.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize(("temporal_adapters", "scale"), [(1, 0.5), (1, 1.0), (2, 0.5), (2, 1.0)])
@pytest.mark.parametrize("name", BACKBONES)
def test_scores_are_those_of_the_official_equations(name, temporal_adapters, scale, dtype):
    layout, build = BACKBONES[name]
    state, clips = official(layout, temporal_adapters, dtype), zoo.make_clips().to(dtype)
    model = from_official({"state_dict": state, "meta": {"epoch": 30}}, build(state), scale)
    assert not any(module.training for module in model.modules())
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    double = {key: tensor.double() for key, tensor in state.items()}
    assert close(scores(model, clips), expected(double, clips.double(), layout, scale), tolerance)
    config = model.peft_config["default"]
    assert (config.num_frames, config.num_labels, config.scale) == (zoo.FRAMES, CLASSES, scale)
    assert config.temporal_adapters == temporal_adapters


@pytest.mark.parametrize("name", BACKBONES)
def test_saved_adapters_load_onto_a_fresh_backbone(name, tmp_path):
    layout, build = BACKBONES[name]
    state, clips = official(layout, 2), zoo.make_clips()
    torch.save(
        {"state_dict": {f"module.{k}": t for k, t in state.items()}, "meta": {"time": "now"}}, tmp_path / "a.pth"
    )
    model = from_official(tmp_path / "a.pth", build(state))
    model.save_pretrained(tmp_path / "adapter")
    fresh = build(state)
    # the final norm is the adapter's own
    again = PeftModel.from_pretrained(with_place_for_head(fresh), tmp_path / "adapter").eval()
    assert torch.equal(scores(again, clips), scores(model, clips))
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert len(names) == DEPTH * 4 * 4 + 1 + 2 + 2 and all(".aim_" in name for name in names)


def test_a_bare_state_dict_will_do():
    state = official("clip")
    assert from_official(state, timm_clip(state)).peft_config["default"].num_labels == CLASSES


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_weights_rounded_to_half_precision_are_the_same(half):
    state, clips = official("clip"), zoo.make_clips()
    rounded = timm_clip({key: tensor.to(half).float() for key, tensor in state.items()})
    assert close(scores(from_official(state, rounded), clips), expected(state, clips, "clip"), 0.05)
    low = timm_clip({key: tensor.to(half) for key, tensor in state.items()})
    model = from_official(state, low)
    assert close(scores(model, clips.to(half)).float(), expected(state, clips, "clip"), 0.1)


def test_a_backbone_keeps_its_mode_and_what_trains_when_refused():
    state = official("clip")
    backbone = timm_clip(state, "").train()
    backbone.norm.weight.requires_grad_(False)
    before = {name: (t.clone(), t.requires_grad) for name, t in backbone.named_parameters()}
    with pytest.raises(ValueError, match="QuickGELU"):
        from_official(state, backbone)
    assert all(module.training for module in backbone.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1]


# The place for a head.


def test_a_model_with_a_place_for_a_head_stays_as_it_is():
    for backbone in (zoo.build("timm_vit"), zoo.build("hf_vit"), tf_clip(official("clip"))):
        assert with_place_for_head(backbone) is backbone


@pytest.mark.parametrize("whole", [True, False])
def test_a_bare_projection_at_the_end_is_switched_off(whole):
    model = open_clip_model(official("clip"))
    images = torch.randn(2, 3, zoo.SIZE, zoo.SIZE)
    before, matrix = model.visual(images), model.visual.proj.detach().clone()
    place = with_place_for_head(model if whole else model.visual)
    assert place[0] is model.visual and image_size(place) == (zoo.SIZE, zoo.SIZE) and not place.training
    assert torch.allclose(place(images) @ matrix, before, atol=1e-5)
    assert torch.equal(with_place_for_head(model.visual)(images), place(images))  # once more


def test_the_image_size_is_carried_over():
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = timm_clip(official("clip"), dynamic_img_size=True)
            self.matrix = nn.Parameter(torch.randn(WIDTH, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.stem(x) if self.matrix is None else self.stem(x) @ self.matrix

    tower = Tower()
    tower.image_size = (40, 48)
    assert image_size(with_place_for_head(tower)) == (40, 48)
    assert tower.matrix is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda s: tf_clip(s).vision_model,
            "CLIPVisionModel returns BaseModelOutputWithPooling, which is neither the class token behind its final",
        ),
        (
            lambda s: open_clip_model(s, pool_type="avg").visual,
            r"VisionTransformer returns a tensor \(1, 24\), which is neither the class token",
        ),
    ],
)
def test_towers_that_return_something_else_are_refused(build, message):
    model = build(official("clip"))
    before = model.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        with_place_for_head(model)
    assert model.state_dict().keys() == before


# Refusals: the file.


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle"])
def test_code_in_a_file_is_not_run(kind, tmp_path):
    state, path, trap = official("clip"), tmp_path / "evil.pth", tmp_path / "trap"
    content = {"state_dict": state, "meta": Evil(trap)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Evil(trap)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(ValueError) as refusal:
        from_official(path, timm_clip(state))
    assert not trap.exists()
    if kind != "pickle":
        assert re.search(
            r"evil.pth holds more than tensors, and reading it would run code: posix\.mkdir\. Nothing of it was run",
            str(refusal.value),
        )
        assert 'torch.save({"state_dict":' in str(refusal.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    backbone = nn.Identity()
    with pytest.raises(ValueError, match=r"missing.pth cannot be read: .*No such file"):
        from_official(tmp_path / "missing.pth", backbone)
    with pytest.raises(ValueError, match="cannot be read: .*directory"):
        from_official(tmp_path, backbone)
    torch.save({"state_dict": official("clip")}, tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    for length in (0, 10, len(whole) // 2):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.pth is broken, or no file of torch.save \(.*Get the file again"):
            from_official(tmp_path / "cut.pth", backbone)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth holds a list where a state dict belongs"):
        from_official(tmp_path / "list.pth", backbone)
    with pytest.raises(ValueError, match="got a int|is neither a path"):
        from_official(3, backbone)


def changed(state: dict[str, Tensor], drop: str = " ", **new: Tensor) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not re.search(drop, name)} | new


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: changed(s, "_Adapter"), "is no checkpoint of AIM: none of its 3. tensors belongs to an S_Adapter"),
        (lambda s: {}, "none of its 0 tensors"),
        (
            lambda s: renamed(s, {"transformer.resblocks": "layers.0.blocks"}),
            r"is of a Swin \(backbone.layers.0.blocks.0.attn.in_proj_weight\). Only the layouts of CLIP and of ViT",
        ),
        (
            lambda s: renamed(s, {"transformer.resblocks": "h"}),
            "but blocks neither as backbone.transformer.resblocks.N",
        ),
        (lambda s: changed(s, "cls_head"), "has a head of no tensors where cls_head.fc_cls.weight and .bias belong"),
        (
            lambda s: changed(s, r"0\.(S_Adapter.D_fc2|ln_1)|temporal_embedding|ln_post.bias|conv1"),
            "has no backbone.conv1.weight, backbone.temporal_embedding, backbone.ln_post.bias, "
            "backbone.transformer.resblocks.0.ln_1.weight, backbone.transformer.resblocks.0.ln_1.bias, "
            "backbone.transformer.resblocks.0.S_Adapter.D_fc2.weight and 1 more. Get the whole file again.",
        ),
        (
            lambda s: changed(s, r"1\.T_Adapter_in"),
            "has no backbone.transformer.resblocks.1.T_Adapter_in.D_fc1.weight",
        ),
        (
            lambda s: changed(s, r"0\.T_Adapter_in"),
            "has no backbone.transformer.resblocks.0.T_Adapter_in.D_fc1.weight",
        ),
        (lambda s: changed(s, r"resblocks\.0"), r"has the blocks \[1\], with gaps"),
        (
            lambda s: changed(s, **{"backbone.ln_post.weight": torch.ones(3)}),
            r"don't fit its width 128 and its bottlenecks of 24: backbone.ln_post.weight \(3,\)",
        ),
        (
            lambda s: changed(s, **{"backbone.transformer.resblocks.1.S_Adapter.D_fc1.bias": torch.ones(3)}),
            r"don't fit its width 128 and its bottlenecks of 24: block 1 spatial_down.bias \(3,\)",
        ),
    ],
)
def test_incomplete_and_other_checkpoints_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        from_official(change(official("clip", 2)), nn.Identity())


# Refusals: the backbone.


def test_random_weights_are_refused():
    state, other = official("clip"), {k: torch.randn_like(t) for k, t in official("clip").items()}
    for build in (timm_clip, tf_clip, open_clip_model):
        with pytest.raises(ValueError, match="was not trained on the weights of this") as refusal:
            from_official(state, build(other))
        message = str(refusal.value)
        assert re.search(r": 29 of 29 frozen tensors have no equal in it \(relative root mean square", message)
        assert re.search(r"\n  backbone.conv1.weight: the closest is .*, which differs by 1..\..%", message)
        assert message.count("\n  backbone.") == 6 and "\n  ... and 23 more" in message
        assert message.endswith("Load the pretrained weights that the file was trained on into the backbone first.")


def test_a_single_other_norm_is_named():
    state = official("clip")
    backbone = tf_clip(state)
    with torch.no_grad():
        backbone.vision_model.encoder.layers[1].layer_norm2.weight.mul_(1.01)
    with pytest.raises(ValueError) as refusal:
        from_official(state, backbone)
    assert str(refusal.value) == (
        "The checkpoint was not trained on the weights of this CLIPVisionModelWithProjection: 1 of 29 frozen tensors "
        "have no equal in it (relative root mean square of the difference).\n"
        "  backbone.transformer.resblocks.1.ln_2.weight: the closest is "
        "vision_model.encoder.layers.1.layer_norm2.weight, which differs by 1.0%\n"
        "Most are the same: give just the image model that the file was trained on, no relative of it."
    )


def test_other_sizes_are_refused():
    state = official("clip")
    with pytest.raises(ValueError, match=r"has 2 blocks of width 128, but this VisionTransformer has 1 of width 128"):
        from_official(state, timm_clip_of_size(depth=1))
    with pytest.raises(ValueError, match=r"has 2 blocks of width 128, but this VisionTransformer has 2 of width 64"):
        from_official(state, timm_clip_of_size(embed_dim=64))
    with pytest.raises(
        ValueError,
        match=r"backbone.positional_embedding: there is none of its shape \(17, 128\) left\n  backbone.conv1",
    ):
        from_official(state, timm_clip_of_size(patch_size=16))


def timm_clip_of_size(**sizes: int) -> nn.Module:
    return timm.create_model("vit_base_patch16_clip_quickgelu_224", **{**SIZES, **sizes}, num_heads=2, num_classes=0)


def test_further_weights_are_refused():
    state = official("imagenet")
    with_norm_pre = timm_vit(state)
    with_norm_pre.norm_pre = nn.LayerNorm(WIDTH)
    with pytest.raises(ValueError, match="weights that The checkpoint knows nothing of: blocks.0.ls1.gamma, .*ls2"):
        from_official(
            state, fill_all_but(timm.create_model("vit_base_patch16_224", **SIZES, num_heads=2, init_values=1))
        )
    with pytest.raises(
        ValueError, match="weights that The checkpoint knows nothing of: norm_pre.weight, norm_pre.bias"
    ):
        from_official(state, with_norm_pre)


def fill_all_but(model: nn.Module) -> nn.Module:
    model.load_state_dict(frozen(official("imagenet")), strict=False)
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda state: timm_clip(state, ""),
        lambda state: tf_clip(state, act="gelu"),
        lambda state: open_clip_model(state, quick_gelu=False),
    ],
)
def test_another_activation_is_refused_and_named(build):
    state = official("clip")
    with pytest.raises(
        ValueError,
        match=r"is GELU, but The checkpoint, in the layout of CLIP, was trained with QuickGELU \(\d\.\d% apart\)\. "
        "Take the variant with quickgelu in its name",
    ):
        from_official(state, build(state))


@pytest.mark.parametrize(
    ("act", "found"), [("quick_gelu", "QuickGELU"), ("gelu_pytorch_tanh", "GELU by tanh"), ("relu", "ReLU")]
)
def test_another_activation_than_gelu_is_refused_and_named(act, found):
    state = official("imagenet")
    with pytest.raises(
        ValueError, match=f"is {found}, but The checkpoint, in the layout of vit_imagenet, was trained"
    ):
        from_official(state, tf_vit(state, act))


def test_an_unknown_activation_is_refused():
    state = official("imagenet")
    with pytest.raises(ValueError, match="is none of QuickGELU, GELU, GELU by tanh, ReLU"):
        from_official(state, tf_vit(state, "silu"))


def test_another_number_of_heads_is_refused():
    state = official("clip")
    with pytest.raises(ValueError, match="attention of blocks.0 .* has 4 heads, .* was trained with 2 heads, 64 wide"):
        from_official(state, timm_clip(state, num_heads=4))


def test_another_readout_is_refused():
    state = official("clip")
    with pytest.raises(
        ValueError, match="(?s)The head 'classifier' .*give the variant .*CLIPVisionModelWithProjection"
    ):
        from_official(state, tf_clip(state, "classifier"))
    state = official("imagenet")
    with pytest.raises(ValueError, match="doesn't get the class token behind the final norm 'fc_norm'"):
        from_official(state, timm_vit(state, global_pool="avg"))


def test_another_computation_with_the_same_weights_is_refused():
    state = official("clip")

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    backbone = timm_clip(state)
    backbone.blocks[1].ls2 = Scaled()
    with pytest.raises(ValueError, match=r"but in blocks.1 it computes something else than the official CLIP model"):
        from_official(state, backbone)
    backbone = timm_clip(state)
    backbone.pos_drop = Scaled()
    backbone.norm_pre.eps = 0.0
    backbone.norm_pre.register_forward_hook(lambda module, args, output: 1.1 * output)
    with pytest.raises(ValueError, match=r"but where patches become tokens it computes something else"):
        from_official(state, backbone)
    backbone = timm_clip(state)
    backbone.blocks[1].register_forward_pre_hook(lambda module, args: (1.1 * args[0], *args[1:]))
    with pytest.raises(ValueError, match=r"but before blocks.1 it computes something else"):
        from_official(state, backbone)


def test_a_model_without_weights_is_refused():
    state = official("clip")
    with pytest.raises(ValueError, match="on the device 'meta', without weights"):
        from_official(state, timm_clip(state).to("meta"))
