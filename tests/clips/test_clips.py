"""Models take clips and return one result per clip, for all libraries and kinds of outputs."""

from __future__ import annotations

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers as tf
import zoo
from peft import get_peft_model
from torch import nn

from peft_aim import AIMConfig

LABELS = torch.tensor([1, 4])


def adapt(model: nn.Module | str, **options: object) -> nn.Module:
    backbone = zoo.build(model) if isinstance(model, str) else model.eval()
    return get_peft_model(backbone, AIMConfig(**{"num_frames": zoo.FRAMES, "init_weights": False, **options})).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "keyword"), [("hf_vit", "pixel_values"), ("timm_vit", "x"), ("torchvision_vit", "x")]
)
def test_clips_can_be_passed_by_keyword(name, keyword):
    model, clips = adapt(name), zoo.make_clips()
    assert torch.equal(zoo.scores(model(**{keyword: clips})), zoo.scores(model(clips)))


def test_labels_can_be_passed_before_clips():
    model, clips = adapt("hf_vit"), zoo.make_clips()
    assert torch.equal(model(labels=LABELS, pixel_values=clips).loss, model(clips, labels=LABELS).loss)


@pytest.mark.parametrize("name", [name for name in zoo.ZOO if name.startswith("hf") and name != "hf_dinov3"])
def test_loss_is_computed_from_averaged_scores(name):
    model, clips = adapt(name), zoo.make_clips()
    output = model(clips, labels=LABELS)
    assert output.loss.requires_grad
    assert torch.allclose(output.loss, F.cross_entropy(output.logits, LABELS))
    assert next(iter(output)) == "loss"


def test_loss_with_the_adapters_own_number_of_classes():
    model, clips = adapt("hf_vit", num_labels=9), zoo.make_clips()
    labels = torch.tensor([8, 0])
    output = model(clips, labels=labels)
    assert output.logits.shape == (2, 9)
    assert torch.allclose(output.loss, F.cross_entropy(output.logits, labels))
    assert model.base_model.model.config.num_labels == 5


def test_loss_uses_num_items_in_batch():
    """Trainer averages the loss over accumulated batches by passing the model their total size."""
    model, clips = adapt("hf_vit"), zoo.make_clips()
    mean = model(clips, labels=LABELS).loss
    assert torch.allclose(model(clips, labels=LABELS, num_items_in_batch=8).loss, mean * 2 / 8)


@torch.no_grad()
def test_labels_can_be_passed_by_position():
    model, clips = adapt("hf_clip"), zoo.make_clips()
    assert torch.equal(model(clips, LABELS).loss, model(clips, labels=LABELS).loss)


@torch.no_grad()
def test_tuples_are_equal_to_model_outputs():
    model, clips = adapt("hf_vit"), zoo.make_clips()
    output = model(clips, labels=LABELS, output_hidden_states=True)
    loss, logits, hidden_states = model(clips, labels=LABELS, output_hidden_states=True, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert all(map(torch.equal, hidden_states, output.hidden_states))


@torch.no_grad()
def test_models_without_a_head_return_averaged_features_and_all_tokens():
    config = tf.ViTConfig(**zoo.SMALL)
    backbone, clips = tf.ViTModel(config).eval(), zoo.make_clips()
    frames = backbone(clips.flatten(0, 1))
    output = adapt(backbone, init_weights=True)(clips)
    assert type(output) is type(frames)
    assert torch.equal(output.pooler_output, frames.pooler_output.unflatten(0, (2, 4)).mean(1))
    assert torch.equal(output.last_hidden_state, frames.last_hidden_state.reshape(2, 4 * 17, 32))


@torch.no_grad()
def test_projected_embeddings_are_averaged():
    backbone, clips = tf.CLIPVisionModelWithProjection(tf.CLIPVisionConfig(**zoo.SMALL)).eval(), zoo.make_clips()
    frames = backbone(clips.flatten(0, 1)).image_embeds
    assert torch.equal(adapt(backbone, init_weights=True)(clips).image_embeds, frames.unflatten(0, (2, 4)).mean(1))


@torch.no_grad()
def test_timm_features_and_tokens():
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2, "num_classes": 0}
    clips = zoo.make_clips()
    assert adapt(timm.create_model("vit_tiny_patch16_224", **options))(clips).shape == (2, 32)
    tokens = adapt(timm.create_model("vit_tiny_patch16_224", **options, global_pool=""))(clips)
    assert tokens.shape == (2, 4 * 17, 32)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hf_vit", "hf_swin"])
def test_attention_maps_are_those_of_spatial_attention(name):
    backbone, clips = zoo.build(name), zoo.make_clips()
    backbone.set_attn_implementation("eager")
    frames = backbone(clips.flatten(0, 1), output_attentions=True).attentions
    maps = adapt(backbone, init_weights=True)(clips, output_attentions=True).attentions
    assert len(maps) == len(frames)
    assert all(torch.equal(m.flatten(0, 1), f) for m, f in zip(maps, frames, strict=True))
    assert maps[0].shape[0] == 2


@torch.no_grad()
def test_other_lengths_interpolate_the_embedding():
    model, clips = adapt("timm_vit", num_frames=2, temporal=False), zoo.make_clips(frames=4)
    twin = adapt("timm_vit", num_frames=4, temporal=False)
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if "embedding" not in k}, strict=False)
    first = twin.base_model.model.blocks[0].aim_temporal_embedding
    first["default"].weight.copy_(
        F.interpolate(
            model.base_model.model.blocks[0].aim_temporal_embedding["default"].weight.transpose(1, 2), 4, mode="linear"
        ).transpose(1, 2)
    )
    assert torch.equal(model(clips), twin(clips))


# Models of images and text: the image tower takes clips, the text tower is not changed.


@torch.no_grad()
def test_open_clip_encodes_clips_and_text():
    torch.manual_seed(0)
    backbone, clips = zoo.open_clip_model().eval(), zoo.make_clips()
    backbone.requires_grad_(False)  # torch's masked attention rounds differently once its weights are frozen
    tokens = torch.randint(0, 50, (3, 7))
    image = backbone.encode_image(clips.flatten(0, 1)).unflatten(0, (2, 4)).mean(1)
    text = backbone.encode_text(tokens)
    model = adapt(backbone, init_weights=True)
    assert torch.equal(model.encode_image(clips), image)
    assert torch.equal(model.encode_text(tokens), text)
    assert all(".visual." in key for key, p in model.named_parameters() if p.requires_grad)
    of_clips, of_text, _ = model(clips, tokens)
    assert torch.allclose(of_clips, F.normalize(image, dim=-1))
    assert of_text.shape == (3, 24)


@torch.no_grad()
def test_transformers_clip_compares_clips_with_text():
    config = tf.CLIPConfig(
        vision_config=zoo.SMALL,
        text_config={
            **{key: zoo.SMALL[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
            "vocab_size": 50,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        },
        projection_dim=16,
    )
    backbone, clips = tf.CLIPModel(config).eval(), zoo.make_clips()
    text = torch.randint(3, 50, (3, 5))
    model = adapt(backbone)
    output = model(input_ids=text, pixel_values=clips)
    assert output.logits_per_image.shape == (2, 3)
    assert model.get_image_features(clips).pooler_output.shape == (2, 16)


def test_open_clip_with_a_timm_tower():
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False, "image_size": 224}
    text = {"context_length": 7, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    backbone = open_clip.CustomTextCLIP(embed_dim=24, vision_cfg=vision, text_cfg=text)
    model = adapt(backbone)
    assert model.encode_image(torch.randn(1, 2, 3, 224, 224)).shape == (1, 24)


# Errors.


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 4, 32, 32), r"look like \(B, C, T, H, W\).*clips.transpose\(1, 2\)"),
        ((2, 4, 1, 32, 32), r"1 channels where the model takes 3"),
        ((2, 1, 32, 32), r"1 channels where the model takes 3"),
        ((3, 32, 32), r"neither clips \(B, T, 3, H, W\) nor images.*clip.unsqueeze\(0\)"),
        ((2, 0, 3, 32, 32), "which contain no frames"),
    ],
)
def test_tensors_of_other_shapes_are_rejected(shape, message):
    with pytest.raises(ValueError, match=message):
        adapt("timm_vit")(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_clips_of_integers_are_rejected(dtype):
    with pytest.raises(
        ValueError, match=f"Got clips of {dtype}. Pass floats, normalized like .*resolve_model_data_config"
    ):
        adapt("timm_vit")(zoo.make_clips().to(dtype))


def test_masks_per_clip_are_rejected():
    backbone = tf.ViTModel(tf.ViTConfig(**zoo.SMALL), use_mask_token=True)
    model, mask = adapt(backbone), torch.zeros(2, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"bool_masked_pos has the shape \(2, 16\).*repeat_interleave\(4, dim=0\)"):
        model(zoo.make_clips(), bool_masked_pos=mask)
    with pytest.raises(ValueError, match="bool_masked_pos has the shape"):
        model(zoo.make_clips(), mask)
    output = model(zoo.make_clips(), bool_masked_pos=mask.repeat_interleave(4, dim=0))
    assert output.pooler_output.shape == (2, 32)


def test_labels_for_other_tasks_are_rejected():
    backbone = tf.BeitForSemanticSegmentation(
        tf.BeitConfig(**{**zoo.SMALL, "num_hidden_layers": 4}, num_labels=5, out_indices=[1, 2, 3, 4])
    )
    with pytest.raises(
        ValueError, match=r"labels= is for models that return class scores .*returned a tensor \(2, 4, 5"
    ):
        adapt(backbone.eval(), layers_to_transform=[0, 1, 2])(  # nothing comes of the last one in transformers
            zoo.make_clips(), labels=torch.zeros(2, 32, 32, dtype=torch.long)
        )


def test_integers_are_not_averaged():
    class Guess(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = zoo.build("timm_vit")

        def forward(self, x):
            scores = self.backbone(x)
            return scores, scores.argmax(-1)

    scores, guesses = adapt(Guess())(zoo.make_clips())
    assert scores.shape == (2, 5) and guesses.shape == (2, 4)


def test_data_parallel_is_rejected():
    model = adapt("timm_vit")
    replica = model.base_model.model._replicate_for_data_parallel()
    with pytest.raises(ValueError, match="nn.DataParallel copies .*accelerate launch"):
        replica(zoo.make_clips())


def test_other_types_than_tensors_are_rejected():
    with pytest.raises(ValueError, match=r"got a list instead of clips.*as x="):
        adapt("timm_vit")([zoo.make_clips()])


def test_wrong_numbers_of_labels_are_rejected():
    with pytest.raises(ValueError, match="8 labels for 2 clips"):
        adapt("hf_vit")(zoo.make_clips(), labels=torch.zeros(8, dtype=torch.long))


def test_blocks_with_another_batch_are_rejected():
    model, clips = adapt("timm_vit"), zoo.make_clips()
    block = model.base_model.model.blocks[1]
    block.register_forward_pre_hook(lambda module, args: (args[0].repeat(2, 1, 1),))
    with pytest.raises(ValueError, match=r"its batch is not 8 images.*exclude_modules"):
        model(clips)


def test_methods_that_bypass_the_call_are_rejected():
    with pytest.raises(ValueError, match=r"outside of a call of the model.*Call the model itself on clips"):
        adapt("timm_vit").forward_features(zoo.make_clips().flatten(0, 1))
