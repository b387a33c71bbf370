"""Backbones with images of another size than in pretraining."""

from __future__ import annotations

import pytest
import timm
import torch
import transformers as tf
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import nn

from peft_aim import AIMConfig
from peft_aim.video.backbones import Source, load_backbone
from peft_aim.video.image_size import set_image_size

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SIZES = {**SMALL, "image_size": 32, "patch_size": 8}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}


def with_positions(model: nn.Module) -> nn.Module:
    """Draw position embeddings and tables, which many models start at zero."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "pos" in name:
            nn.init.normal_(parameter)
    return model.eval()


@pytest.fixture
def vit() -> nn.Module:
    return with_positions(timm.create_model("test_vit", num_classes=7))  # 160 px, patches of 16


def test_position_embeddings_in_a_file_are_resampled(vit, tmp_path):
    weights = vit.state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        model, preprocessing = load_backbone(Source("test_vit", str(tmp_path / name), image_size=64))
        loaded = model.state_dict()
        expected = resample_abs_pos_embed(weights["pos_embed"], [4, 4], num_prefix_tokens=1)
        assert torch.equal(loaded.pop("pos_embed"), expected) and preprocessing.size == (64, 64)
        assert all(torch.equal(tensor, weights[key]) for key, tensor in loaded.items())
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 64)


def test_half_precision_files_are_loaded_in_single_precision(vit, tmp_path):
    weights = vit.half().state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    model, _ = load_backbone(Source("test_vit", str(tmp_path / "weights.safetensors"), image_size=64))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = resample_abs_pos_embed(weights["pos_embed"], [4, 4], num_prefix_tokens=1)
    assert torch.equal(model.pos_embed, expected.float())


@pytest.mark.filterwarnings("ignore:(torch.searchsorted|Using a non-tuple)")  # in timm's resampling
def test_tables_of_relative_positions_in_a_file_are_resampled(tmp_path, monkeypatch):
    sizes = {"img_size": 64, "embed_dim": 16, "depth": 1, "num_heads": 2}
    weights = with_positions(timm.create_model("beit_base_patch16_224", **sizes, num_classes=0)).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    model = timm.create_model("beit_base_patch16_224", **sizes | {"img_size": 32}, num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: model)  # a small one
    load_backbone(Source("beit_base_patch16_224", str(tmp_path / "weights.safetensors"), image_size=32))
    table = "blocks.0.attn.relative_position_bias_table"
    filtered = timm.models.beit.checkpoint_filter_fn(dict(weights), model)
    assert torch.equal(model.state_dict()[table], filtered[table]) and len(filtered[table]) < len(weights[table])


def test_missing_frozen_weights_are_rejected_at_any_size(vit, tmp_path):
    weights = vit.state_dict()
    del weights["blocks.0.norm1.weight"]
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"lacks \['blocks.0.norm1.weight'\].* would be frozen at random values"):
        load_backbone(Source("test_vit", str(tmp_path / "weights.safetensors"), image_size=64))
    del weights["pos_embed"]
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"lacks .*'pos_embed'.* would be frozen at random values"):
        load_backbone(Source("test_vit", str(tmp_path / "weights.safetensors"), image_size=64))


def test_a_file_that_does_not_fit_is_explained(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit2", num_classes=0, embed_dim=32).state_dict(), path)
    with pytest.raises(
        ValueError,
        match=r"weights.safetensors is of another model or image size: pos_embed is \(1, 17, 32\) in the file, but "
        r"\(1, 17, 64\) in the model; .* and \d+ more\). Give the weights of this model with --weights FILE, leave "
        r"out image_size \(--image-size\), or",
    ):
        load_backbone(Source("test_vit", str(path), image_size=64))


def whole(kind: type[nn.Module], config: type) -> nn.Module:
    return kind(config(vision_config=SIZES, text_config=SMALL))


TRANSFORMERS = {
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**SIZES)),
    "deit": lambda: tf.DeiTForImageClassification(tf.DeiTConfig(**SIZES)),
    "dinov2": lambda: tf.Dinov2ForImageClassification(tf.Dinov2Config(**SIZES)),
    "beit": lambda: tf.BeitForImageClassification(tf.BeitConfig(**SIZES, use_relative_position_bias=True)),
    "clip": lambda: tf.CLIPVisionModelWithProjection(tf.CLIPVisionConfig(**SIZES)),
    "clip inside": lambda: whole(tf.CLIPForImageClassification, tf.CLIPConfig),
    "siglip": lambda: whole(tf.SiglipForImageClassification, tf.SiglipConfig),
    "swin": lambda: tf.SwinForImageClassification(tf.SwinConfig(**SWIN, window_size=4, use_absolute_embeddings=True)),
}


@pytest.fixture
def folder(tmp_path):
    def save(model: nn.Module) -> Source:
        model.save_pretrained(tmp_path / "backbone")
        tf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "backbone")
        return Source(str(tmp_path / "backbone"), model_class=type(model).__name__, image_size=16)

    return save


def scores(output: object) -> torch.Tensor:
    return output["logits"] if "logits" in output else output[0]


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_transformers_models_interpolate_their_positions(name, folder):
    before = with_positions(TRANSFORMERS[name]())
    model, preprocessing = load_backbone(folder(before))
    assert preprocessing.size == (16, 16)
    images = torch.randn(2, 3, 16, 16)
    interpolates_anyway = name == "dinov2"
    expected = before(images) if interpolates_anyway else before(images, interpolate_pos_encoding=True)
    assert torch.equal(scores(model(pixel_values=images)), scores(expected))
    assert all(torch.equal(tensor, before.state_dict()[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["vit", "beit", "clip inside"])
def test_adapters_at_another_size_are_loaded_again(name, folder, tmp_path):
    source = folder(with_positions(TRANSFORMERS[name]()))
    clips = torch.randn(1, 2, 3, 16, 16)
    model = get_peft_model(load_backbone(source)[0], AIMConfig(num_frames=2, num_labels=3)).eval()
    nn.init.normal_(next(p for n, p in model.named_parameters() if "aim_" in n and p.requires_grad))
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load_backbone(source)[0], tmp_path / "adapter").eval()  # without a warning
    assert torch.equal(scores(again(clips)), scores(model(clips)))


@pytest.mark.filterwarnings("ignore:Could not find a config file in timm/test_vit")  # PEFT, offline
def test_adapters_on_a_file_at_another_size_are_loaded_again(vit, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_file(vit.state_dict(), tmp_path / "weights.safetensors")
    source = Source("test_vit", str(tmp_path / "weights.safetensors"), image_size=64)
    clips = torch.randn(1, 2, 3, 64, 64)
    model = get_peft_model(load_backbone(source)[0], AIMConfig(num_frames=2, num_labels=3)).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load_backbone(source)[0], tmp_path / "adapter").eval()  # without a warning
    assert torch.equal(again(clips), model(clips))


def test_sizes_that_a_model_does_not_take_are_explained(folder):
    model = tf.SwinForImageClassification(tf.SwinConfig(**SWIN, window_size=8))
    with pytest.raises(
        ValueError,
        match=r"SwinForImageClassification does not take images of 16 x 16 pixels \(RuntimeError: .*\). Its own size "
        r"is 32 x 32 pixels: leave out image_size \(--image-size\), or try another",
    ):
        load_backbone(folder(model))


def test_the_size_of_pretraining_can_be_given():
    for name in ("torchvision:vit_b_32", "test_vit"):
        side = 160 if name == "test_vit" else 224
        _, preprocessing = load_backbone(Source(name, random_weights=True, image_size=side))
        assert preprocessing.size == (side, side)


def test_checking_the_size_leaves_running_statistics_as_they_are():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    set_image_size(model, 8, (4, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()) and model.training
