"""Features of adapted models: what the head receives, and the last tokens, against the libraries' own."""

from __future__ import annotations

import home_made
import pytest
import timm
import torch
import transformers as tf
import zoo
from peft import get_peft_model
from torch import Tensor, nn

from peft_aim import AIMConfig
from peft_aim.layers import AIMHead


def adapt(model: nn.Module | str, **options: object) -> nn.Module:
    backbone = zoo.build(model) if isinstance(model, str) else model.eval()
    torch.manual_seed(0)
    return get_peft_model(backbone, AIMConfig(**{"num_frames": zoo.FRAMES, "init_weights": False, **options})).eval()


def small(name: str, **options: object) -> nn.Module:
    sizes = {"img_size": zoo.SIZE, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2, "num_classes": 5}
    return timm.create_model(name, **{**sizes, **options})


def own_tokens(backbone: nn.Module, images: Tensor) -> Tensor:
    """Return the tokens of images (B, *N, D) as the backbone's library does."""
    if hasattr(backbone, "forward_features"):
        return backbone.forward_features(images)
    if isinstance(backbone, tf.PreTrainedModel):
        body = backbone.base_model if "Classification" in type(backbone).__name__ else backbone
        return getattr(backbone, "vision_model", body)(images).last_hidden_state
    return backbone.norm(backbone.features(images))  # torchvision's Swin


@torch.no_grad()
@pytest.mark.parametrize("name", zoo.ZOO)
def test_heads_map_features_to_scores_and_tokens_are_those_of_the_library(name):
    backbone, clips = zoo.build(name), zoo.make_clips()
    has_tokens = name.startswith(("timm", "hf")) or name == "torchvision_swin"
    own = own_tokens(backbone, clips.flatten(0, 1)).flatten(1, -2).unflatten(0, (2, -1)) if has_tokens else None
    model = adapt(backbone)
    found = backbone.aim_clips.inspection
    head = backbone.get_submodule(found.last_layer) if found.last_layer else nn.Identity()
    assert torch.allclose(head(model.features(clips)), zoo.scores(model(clips)), atol=1e-5)
    with model.disable_adapter():
        assert torch.allclose(head(model.features(clips)), zoo.scores(model(clips)), atol=1e-5)
        assert not has_tokens or torch.allclose(model.features(clips, tokens=True), own, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["openai_clip", "own_sequence_first"])
def test_tokens_with_the_sequence_first_have_the_batch_first(name):
    backbone, clips, seen = zoo.build(name), zoo.make_clips(), []
    backbone.resblocks[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    backbone(clips.flatten(0, 1))
    expected = seen[-1].transpose(0, 1).unflatten(0, clips.shape[:2])  # from (N, B*T, D)
    assert torch.allclose(adapt(backbone, init_weights=True).features(clips, tokens=True), expected, atol=1e-5)


@torch.no_grad()
def test_tokens_of_patch_groups_are_those_of_their_frame():
    backbone, clips, seen = timm.create_model("mobilevit_xxs", num_classes=5).eval(), torch.randn(2, 3, 3, 64, 64), []
    backbone.stages[-1][-1].norm.register_forward_hook(lambda module, args, output: seen.append(output))
    for image in clips.flatten(0, 1):
        backbone(image[None])
    expected = torch.stack(seen[:6]).flatten(1, 2).unflatten(0, (2, 3))  # (B, T, G*N, D)
    assert torch.allclose(adapt(backbone, init_weights=True).features(clips, tokens=True), expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"causal": True}])
def test_the_head_of_an_adapter_gets_the_features(options):
    model, clips = adapt("timm_vit", num_labels=3, **options), zoo.make_clips(frames=7)
    head = model.base_model.model.head
    assert isinstance(head, AIMHead)
    assert torch.allclose(head(model.features(clips)), model(clips), atol=1e-6)


def test_gradients_flow_through_features_and_tokens():
    for tokens in (False, True):
        model = adapt("timm_vit").train()
        model.features(zoo.make_clips(), tokens=tokens).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_features_can_be_recomputed_in_backward(reentrant):
    gradients = []
    for recompute in (False, True):
        model = adapt("hf_vit").train()
        if recompute:
            zoo.recompute(model, reentrant)
        features = model.features(zoo.make_clips())
        model(zoo.make_clips(frames=2))  # another call meanwhile
        features.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad and p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_tokens_inside_of_reentrant_checkpoints_are_rejected(monkeypatch):
    monkeypatch.setattr("timm.models._manipulate.use_reentrant_ckpt", lambda: True)
    model = adapt(small("vit_tiny_patch16_224", global_pool="avg")).train()  # whose final norm is for pooled features
    model.set_grad_checkpointing(True)
    message = r"blocks.1 ran without gradients, since reentrant gradient checkpointing is on.*use_reentrant=False"
    with pytest.raises(ValueError, match=message):
        model.features(zoo.make_clips(), tokens=True)


@torch.no_grad()
def test_compiled_models_have_the_same_features():
    backbone, clips = small("vit_tiny_patch16_224", depth=1), zoo.make_clips()
    expected = (model := adapt(backbone)).features(clips)
    backbone = model.unload()
    backbone.compile(backend="eager")
    model = adapt(backbone)
    model(clips)  # compiles it
    assert torch.equal(model.features(clips), expected)
    assert torch.equal(torch.compile(model.features, backend="eager")(clips), expected)


@torch.no_grad()
def test_models_of_images_and_text_have_the_features_of_images():
    model, clips = adapt(zoo.open_clip_model()), zoo.make_clips()
    assert torch.equal(model.features(clips), model.encode_image(clips))
    assert model.features(clips, tokens=True).shape == (2, 4, 17, 32)


@torch.no_grad()
def test_backbones_keep_their_own_features():
    class Own(home_made.Net):
        def forward(self, images: Tensor) -> Tensor:
            self.features = super().forward(images)
            return self.features

    model, clips = adapt(Own(home_made.Flat())), zoo.make_clips()
    assert model.features(clips).shape == (2, home_made.D)
    assert torch.equal(model.base_model.model.features.unflatten(0, (2, -1)).mean(1), model(clips))


@torch.no_grad()
def test_class_tokens_that_join_after_the_last_block_are_among_the_tokens():
    model = adapt(small("cait_xxs24_224"), target_modules=r"blocks\.\d+")
    assert model.features(zoo.make_clips(), tokens=True).shape == (2, 4, 17, 32)


class Mean(home_made.Net):
    """Normalizes the mean of all tokens, not the tokens."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.trunk(self.stem(images).flatten(2).mT).mean(1)))


class ConvolvedMLP(nn.Module):
    """An MLP with a convolution over positions, which is no half of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(home_made.D), home_made.mlp()
        self.conv = nn.Conv1d(home_made.D, home_made.D, 3, padding=1, groups=home_made.D)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.conv(self.norm(x).mT).mT)


TRUNKS = {
    "pairs": lambda: home_made.Pairs(home_made.Foo, home_made.FeedForward),
    "flat": home_made.Flat,
    "halves": lambda: home_made.Pairs(home_made.Foo, ConvolvedMLP),
    "halves with skips": lambda: nn.Sequential(
        *(home_made.Residual(half()) for _ in range(2) for half in (home_made.Foo, ConvolvedMLP))
    ),
}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:AIM adapts")
@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=TRUNKS)
def test_tokens_of_blocks_that_are_no_modules_are_those_of_the_trunk(trunk):
    backbone, clips, seen = Mean(trunk()).eval(), zoo.make_clips(), []
    backbone.trunk.register_forward_hook(lambda module, args, output: seen.append(output))
    backbone(clips.flatten(0, 1))
    tokens = adapt(backbone, init_weights=True).features(clips, tokens=True)
    assert torch.allclose(tokens, seen[0].unflatten(0, clips.shape[:2]), atol=1e-5)


def test_tokens_that_no_module_returns_are_rejected():
    model = adapt(home_made.build("pairs_in_the_model_itself"))
    message = r"\(B, T, N, D\): no module returns them after trunk.layers.2.1, whose output is only a part of what its"
    with pytest.raises(ValueError, match=message):
        model.features(zoo.make_clips(), tokens=True)


@torch.no_grad()
def test_several_heads_are_rejected():
    model, clips = adapt(small("deit_tiny_distilled_patch16_224")), zoo.make_clips()
    message = "has no head whose input .*, but made of the output of head and head_dist. Pool the tokens yourself"
    with pytest.raises(ValueError, match=message):
        model.features(clips)
    assert model.features(clips, tokens=True).shape == (2, 4, 18, 32)
    headless = adapt(small("deit_tiny_distilled_patch16_224", num_classes=0))
    assert torch.equal(headless.features(clips), headless(clips))


class NoVector(nn.Module):
    """Returns two vectors per image, or tokens."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.body, self.count = zoo.build("timm_vit"), count

    def forward(self, x: Tensor) -> object:
        tokens = self.body.forward_features(x)
        return (tokens, tokens[:, 0], tokens[:, 1])[: 1 + self.count]


@pytest.mark.parametrize(("count", "text"), [(0, "none of which has"), (2, "several of which have")])
def test_outputs_without_one_vector_per_image_are_rejected(count, text):
    message = rf"NoVector returns tensors \(2, 68, 32\).*, {text} the shape \(B, D\) of features. Pool the tokens"
    with pytest.raises(ValueError, match=message):
        adapt(NoVector(count)).features(zoo.make_clips())


def test_parallel_trunks_have_no_tokens():
    options = {"embed_dim": (16, 32), "num_heads": (2, 2), "depth": ((1, 1, 0),), "num_classes": 5}
    backbone = timm.models.CrossVit(img_scale=(1.0, 1.0), patch_size=(120, 120), **options)
    model = adapt(backbone, target_modules=r"blocks\.0\.blocks\.\d\.0")
    message = r"CrossVit has no tokens \(B, T, N, D\): its tokens take several ways at once, which begin in blocks.0"
    with pytest.raises(ValueError, match=message):
        model.features(torch.randn(1, 2, 3, 240, 240), tokens=True)


def test_forward_features_points_to_features():
    with pytest.raises(ValueError, match=r"outside of a call .*; its features are model.features\(clips\)"):
        adapt("timm_vit").forward_features(zoo.make_clips().flatten(0, 1))
