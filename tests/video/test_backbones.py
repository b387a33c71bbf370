"""Backbones by name, with their own preprocessing."""

from __future__ import annotations

import re

import open_clip
import pytest
import timm
import torch
import torchvision
import transformers as tf
from safetensors.torch import save_file
from torch import nn

from peft_aim.__main__ import main
from peft_aim.backbone.names import parse
from peft_aim.video.backbones import Source, load_backbone
from peft_aim.video.data.transforms import ForEvaluation, Preprocessing


def test_every_backbone_has_its_own_preprocessing():
    model, preprocessing = load_backbone(Source("vit_tiny_patch16_224", random_weights=True))
    assert preprocessing == Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic")
    assert model.name_or_path == "timm/vit_tiny_patch16_224"
    _, preprocessing = load_backbone(Source("torchvision:vit_b_32", random_weights=True))
    assert preprocessing == Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")


def test_weights_are_loaded_from_a_file(tmp_path):
    weights = timm.create_model("test_vit", num_classes=0).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    torch.save(weights, tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        model, _ = load_backbone(Source("timm/test_vit", str(tmp_path / name)))
        assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    load_backbone(Source("timm/test_vit", str(tmp_path / "weights.pth")))


def test_missing_frozen_weights_are_rejected(tmp_path):
    weights = timm.create_model("test_vit", num_classes=0).state_dict()
    source = Source("test_vit", str(tmp_path / "weights.safetensors"))
    del weights["norm.weight"]  # the adapter trains it
    save_file(weights, source.weights)
    with pytest.warns(UserWarning, match="lacks norm.weight: the final norm starts with the initial values, scale 1"):
        load_backbone(source)
    del weights["blocks.0.norm1.weight"]
    save_file(weights, source.weights)
    with pytest.raises(
        ValueError, match=r"safetensors lacks \['blocks.0.norm1.weight'\].* would be frozen at random values"
    ):
        load_backbone(source)


def test_missing_frozen_weights_of_transformers_are_rejected(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    tf.ViTImageProcessor().save_pretrained(tmp_path)
    tf.ViTModel(tf.ViTConfig(**small), add_pooling_layer=False).save_pretrained(tmp_path)
    if tf.__version__ >= "5.20":  # 5.14 does not find these weights and keeps random ones
        load_backbone(str(tmp_path))  # a new head belongs to the adapter anyway
    tf.CLIPVisionModel(tf.CLIPVisionConfig(**small)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"lacks .* and \d+ more and has unexpected weights .* would be frozen at random"
    ):
        load_backbone(Source(str(tmp_path), model_class="ViTForImageClassification"))


@pytest.mark.parametrize(
    "options", [{}, {"do_normalize": False}, {"rescale_factor": 1 / 127.5}, {"do_rescale": False}]
)
def test_preprocessing_matches_the_image_processor(tmp_path, options):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    tf.ViTForImageClassification(tf.ViTConfig(**small, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    processor = tf.ViTImageProcessor(size={"height": 32, "width": 32}, resample=2, **options)
    processor.save_pretrained(tmp_path)
    _, preprocessing = load_backbone(str(tmp_path))
    image = torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.allclose(ForEvaluation(preprocessing)(image[None])[0], expected, atol=1e-5)


def test_image_processors_that_swap_channels_are_rejected(tmp_path):
    small = tf.MobileViTConfig(image_size=64)
    tf.MobileViTForImageClassification(small).save_pretrained(tmp_path)
    tf.MobileViTImageProcessor(crop_size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="its image processor swaps the red and blue channels, which is not supported"
    ):
        load_backbone(str(tmp_path))


def test_open_clip_image_towers_get_an_identity_for_the_head(monkeypatch):
    small = dict(image_size=32, patch_size=8, width=32, layers=1, head_width=16)
    text = dict(context_length=7, vocab_size=50, width=32, heads=2, layers=1)

    def create(*args: object, **options: object) -> nn.Module:
        model = open_clip.CLIP(24, small, text)
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        open_clip.set_model_preprocess_cfg(model, dict(size=32, mean=mean, std=std, interpolation="bicubic"))
        return model

    monkeypatch.setattr(open_clip, "create_model", create)
    model, preprocessing = load_backbone(Source("open_clip:ViT-B-32", random_weights=True))
    assert isinstance(model[-1], nn.Identity) and model(torch.zeros(1, 3, 32, 32)).shape == (1, 32)
    assert preprocessing.size == (32, 32) and preprocessing.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)


def test_torchvision_default_weights_are_loaded(monkeypatch):
    requested = []
    get_model = torchvision.models.get_model
    monkeypatch.setattr(
        torchvision.models,
        "get_model",
        lambda name, weights: requested.append(weights) or get_model(name, weights=None),
    )
    model, _ = load_backbone("torchvision:vit_b_32")
    assert requested == [torchvision.models.ViT_B_32_Weights.IMAGENET1K_V1]
    assert model.name_or_path == "torchvision:vit_b_32"


def test_transformers_models_get_the_crop_size_of_their_processor(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    tf.DeiTForImageClassification(tf.DeiTConfig(**small)).save_pretrained(tmp_path)
    tf.DeiTImageProcessor(do_normalize=False).save_pretrained(tmp_path)
    model, preprocessing = load_backbone(str(tmp_path))
    assert preprocessing == Preprocessing((224, 224), (0.0,) * 3, (1.0,) * 3, "bicubic")
    assert Source(str(tmp_path)).resolved(model).model == str(tmp_path)


def test_transformers_models_can_be_loaded_with_another_class(tmp_path):
    config = tf.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32, patch_size=8
    )
    tf.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    model, preprocessing = load_backbone(Source(str(tmp_path), model_class="CLIPVisionModelWithProjection"))
    assert isinstance(model, tf.CLIPVisionModelWithProjection) and preprocessing.size == (32, 32)
    with pytest.raises(ValueError, match="transformers has no class 'CLIPVisionModle' to load"):
        load_backbone(Source(str(tmp_path), model_class="CLIPVisionModle"))


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("timm/vit_tiny_patch16_224", ("timm", "vit_tiny_patch16_224")),
        ("torchvision:vit_b_32", ("torchvision", "vit_b_32")),
        ("me/my-vit", ("transformers", "me/my-vit")),
    ],
)
def test_names_determine_the_library(name, parsed):
    assert parse(name) == parsed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vit_tinny"], "timm has no model 'vit_tinny'"),
        (
            ["--model", "vit_tiny_patch16_224", "--weights", "nowhere.pth"],
            "The weights file nowhere.pth for vit_tiny_patch16_224 does not exist",
        ),
        (["--model", "no/where"], "transformers cannot load 'no/where'"),
        (["--model", "./no/where/vit"], "./no/where/vit is neither a folder nor a Hub id, OWNER/NAME"),
        (["--model", "test_vit"], "pretrained weights of test_vit could not be loaded.*--random-weights"),
        (
            ["--model", "open_clip:ViT-B-32/nope"],
            r"no weights 'nope' for ViT-B-32. Choose open_clip:ViT-B-32/WEIGHTS from \['openai'",
        ),
        (
            ["--model", "test_vit", "--revision", "v2"],
            "a revision apply to transformers models, but test_vit is a timm model",
        ),
        (["--model", "a/b", "--random-weights"], "transformers loads a/b with its own weights"),
    ],
)
def test_backbones_that_cannot_be_loaded_are_explained(folder, tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["train", str(folder), "--output", str(tmp_path / "out"), *arguments]) == 1
    assert re.search(message, capsys.readouterr().err, flags=re.DOTALL)
