"""Small backbones with random weights for the tests: one factory per library and structure."""

from __future__ import annotations

from collections.abc import Callable

import open_clip
import timm
import torch
import torchvision
import transformers as tf
from sequence_first import ClipImageTower, OwnBlock
from torch import Tensor, nn

SIZE = 32  # pixels
FRAMES = 4

ZOO: dict[str, Callable[[], nn.Module]] = {}


def backbone(factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    ZOO[factory.__name__] = factory
    return factory


def build(name: str) -> nn.Module:
    """Build a backbone in evaluation mode, with random weights from a fixed seed."""
    torch.manual_seed(0)
    model = ZOO[name]().eval()
    randomize(model)
    return model


def randomize(model: nn.Module) -> None:
    """Randomize all weights: fresh ones hide terms that start near 0 (LayerScale, biases, tables, attention)."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        parameter.data.copy_(noise / fan_in**0.5 if parameter.ndim > 1 else 0.5 + 0.2 * noise)


def scores(output: object) -> Tensor:
    """Return the class scores, or the pooled features, from the output of a model of any library."""
    return output if isinstance(output, Tensor) else output.get("logits", output.get("pooler_output"))


def frame_average(model: nn.Module, clips: Tensor) -> Tensor:
    """Return an image model's scores for clips: its scores for single frames, averaged."""
    return scores(model(clips.flatten(0, 1))).unflatten(0, clips.shape[:2]).mean(1)


def recompute(model: nn.Module, reentrant: bool) -> None:
    """Switch on gradient checkpointing in transformers, which has another name from 5.22 on."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})


def make_clips(batch: int = 2, frames: int = FRAMES, seed: int = 2) -> Tensor:
    return torch.randn(batch, frames, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def _timm(name: str, **options: object) -> nn.Module:
    return timm.create_model(name, img_size=SIZE, num_classes=5, **options)


@backbone
def timm_vit() -> nn.Module:
    return _timm("vit_tiny_patch16_224", patch_size=8, embed_dim=32, num_heads=2, depth=3)


@backbone
def timm_deit() -> nn.Module:
    return _timm("deit3_small_patch16_224", patch_size=8, embed_dim=32, num_heads=2, depth=2)


@backbone
def timm_clip() -> nn.Module:
    return _timm("vit_base_patch16_clip_224", patch_size=8, embed_dim=32, num_heads=2, depth=2)


@backbone
def timm_dinov2() -> nn.Module:
    return _timm("vit_small_patch14_reg4_dinov2", patch_size=8, embed_dim=32, num_heads=2, depth=2)


@backbone
def timm_dinov3() -> nn.Module:
    return _timm("vit_small_patch16_dinov3", patch_size=8, embed_dim=32, num_heads=2, depth=2)


@backbone
def timm_eva02() -> nn.Module:
    return _timm("eva02_tiny_patch14_224", patch_size=8, embed_dim=32, num_heads=2, depth=2)


@backbone
def timm_beit() -> nn.Module:
    return _timm("beit_base_patch16_224", patch_size=8, embed_dim=32, num_heads=2, depth=2)


@backbone
def timm_swin() -> nn.Module:
    return _timm(
        "swin_tiny_patch4_window7_224", window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), patch_size=2
    )


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIZE,
    "patch_size": 8,
}


@backbone
def hf_vit() -> nn.Module:
    return tf.ViTForImageClassification(tf.ViTConfig(**SMALL, num_labels=5))


@backbone
def hf_deit() -> nn.Module:
    return tf.DeiTForImageClassification(tf.DeiTConfig(**SMALL, num_labels=5))


@backbone
def hf_clip() -> nn.Module:
    config = tf.CLIPConfig(vision_config=SMALL, projection_dim=32, num_labels=5)
    return tf.CLIPForImageClassification(config)


@backbone
def hf_siglip() -> nn.Module:
    return tf.SiglipForImageClassification(tf.SiglipConfig(vision_config=SMALL, num_labels=5))


@backbone
def hf_dinov2() -> nn.Module:
    return tf.Dinov2ForImageClassification(tf.Dinov2Config(**SMALL, num_labels=5))


@backbone
def hf_dinov3() -> nn.Module:
    return tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**SMALL, num_register_tokens=2))


@backbone
def hf_beit() -> nn.Module:
    return tf.BeitForImageClassification(
        tf.BeitConfig(**SMALL, num_labels=5, use_relative_position_bias=True, use_mean_pooling=True)
    )


@backbone
def hf_swin() -> nn.Module:
    return tf.SwinForImageClassification(
        tf.SwinConfig(
            image_size=SIZE, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5
        )
    )


@backbone
def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(SIZE, 8, 2, 2, 32, 64, num_classes=5)


@backbone
def torchvision_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=5)


@backbone
def open_clip_vit() -> nn.Module:
    return open_clip_model().visual


@backbone
def openai_clip() -> nn.Module:
    return ClipImageTower(SIZE, 8)


@backbone
def own_sequence_first() -> nn.Module:
    return ClipImageTower(SIZE, 8, block=OwnBlock, class_token=False)


def open_clip_model() -> nn.Module:
    vision = {"image_size": SIZE, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 7, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
    return open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text)
