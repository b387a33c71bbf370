"""Adapted models compute the paper's equations, up to rounding in float64."""

from __future__ import annotations

import itertools

import paper
import pytest
import torch
import zoo
from peft import get_peft_model, get_peft_model_state_dict
from torch import Tensor

from peft_aim import AIMConfig

SUBSETS = [
    dict(zip(("spatial", "temporal", "joint"), on, strict=True)) for on in itertools.product((True, False), repeat=3)
]
SETTINGS = [{"temporal_adapters": n, "scale": s} for n in (1, 2) for s in (0.5, 1.0)]
OPTIONS = [{**subset, "scale": 0.5} for subset in SUBSETS] + SETTINGS + [{"temporal_embedding": False}]


def names(options: dict) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items())


def adapted(name: str, options: dict) -> tuple[torch.nn.Module, paper.Weights, paper.Weights]:
    """Return an adapted backbone in float64, its frozen weights, and its adapter's weights by the paper's names."""
    backbone = zoo.build(name).double()
    weights = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    model = get_peft_model(backbone, AIMConfig(num_frames=zoo.FRAMES, init_weights=False, **options)).eval()
    saved = get_peft_model_state_dict(model)
    adapter = {key.removeprefix("base_model.model.").replace("aim_", ""): t for key, t in saved.items()}
    embeddings = [key for key in adapter if key.endswith("temporal_embedding")]
    if embeddings:
        adapter["embedding"] = adapter[embeddings[0]]
    return model, weights, adapter


def close(a: Tensor, b: Tensor) -> bool:
    return (a - b).abs().max() < 1e-10 * b.abs().max()


@pytest.mark.parametrize("options", OPTIONS, ids=names)
@pytest.mark.parametrize("name", ["timm_clip", "timm_vit"])
def test_vit_computes_the_equations(name, options):
    model, weights, adapter = adapted(name, options)
    clips = zoo.make_clips().double()
    depth = 2 if name == "timm_clip" else 3
    eps = model.base_model.model.norm.eps
    expected = paper.vit(
        clips, weights, adapter, depth=depth, heads=2, scale=options.get("scale", 0.5), act=paper.gelu, eps=eps
    )
    with torch.no_grad():
        assert close(model(clips), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=names)
def test_swin_computes_the_equations(options):
    model, weights, adapter = adapted("timm_swin", options)
    clips = zoo.make_clips().double()
    expected = paper.swin(
        clips, weights, adapter, depths=(2, 2), heads=(2, 4), window=4, scale=options.get("scale", 0.5)
    )
    with torch.no_grad():
        assert close(model(clips), expected)


def clip_weights(state: dict[str, Tensor]) -> paper.Weights:
    """Rename transformers' CLIP weights as in the reference implementation."""
    renames = {
        "vision_model.embeddings.patch_embedding": "patch_embed.proj",
        "vision_model.pre_layrnorm": "norm_pre",
        "vision_model.encoder.layers": "blocks",
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        "self_attn.out_proj": "attn.proj",
    }
    weights = {}
    for key, tensor in state.items():
        for old, new in renames.items():
            key = key.replace(old, new)
        weights[key] = tensor
    for i in range(2):
        for kind in ("weight", "bias"):
            parts = [weights[f"blocks.{i}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            weights[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    weights["cls_token"] = weights["vision_model.embeddings.class_embedding"]
    weights["pos_embed"] = weights["vision_model.embeddings.position_embedding.weight"]
    return weights


@pytest.mark.parametrize("options", SETTINGS, ids=names)
def test_transformers_clip_computes_the_equations(options):
    """Compare the tokens after the last block: transformers' classifier averages patches, without the class token."""
    model, weights, adapter = adapted("hf_clip", options)
    adapter = {key.replace("vision_model.encoder.layers", "blocks"): t for key, t in adapter.items()}
    weights = clip_weights(weights)
    readout = {
        "norm.weight": torch.ones(32),
        "norm.bias": torch.zeros(32),
        "head.weight": torch.eye(32),
        "head.bias": 0,
    }
    readout = {key: torch.as_tensor(value).double() for key, value in readout.items()}
    clips = zoo.make_clips().double()
    expected = paper.vit(
        clips, weights | readout, adapter, depth=2, heads=2, scale=options["scale"], act=paper.quick_gelu, eps=1e-5
    )
    with torch.no_grad():
        hidden = model(clips, output_hidden_states=True).hidden_states[-1]
    class_tokens = hidden.unflatten(1, (zoo.FRAMES, -1))[:, :, 0]
    standardized = torch.nn.functional.layer_norm(class_tokens, (32,)).mean(1)
    assert close(standardized, expected)
