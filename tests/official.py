"""Small official checkpoints and their backbones, from an independent transcription of the layouts.

The names are listed here, since the package matches tensors by their values.
"""

from __future__ import annotations

import math

import open_clip
import paper
import timm
import torch
import transformers as tf
import zoo
from torch import Tensor, nn

WIDTH, HEADS, DEPTH, PATCH, CLASSES, HIDDEN = 128, 2, 2, 8, 3, 24
TOKENS = (zoo.SIZE // PATCH) ** 2 + 1

# From official names to those of the reference implementation (which are timm's), for both layouts.
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
    """Return a random state dict in the official layout, including the adapters."""
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
    """Rename official weights as in the reference implementation and in timm."""
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
    """Load frozen weights under a library's own names; the final norm and the head stay random."""
    model.to(next(iter(weights.values())).dtype).eval()  # first, or precision is lost
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
