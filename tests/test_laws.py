"""Laws that hold for every adapted backbone, checked on the whole zoo."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
import zoo
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from peft_aim import AIMConfig
from peft_aim.layers.block import AIMLayer
from peft_aim.tracing.outputs import first_tensor

pytestmark = pytest.mark.parametrize("name", zoo.ZOO)


def adapt(backbone: nn.Module, **options: object) -> PeftModel:
    """Adapt a backbone, by default with all adapters, randomly initialized, which change its outputs."""
    temporal = options.get("temporal", True)
    inner = temporal and type(backbone).__module__.startswith("timm")  # the others have it in the input
    parts = {"temporal_conv": temporal, "temporal_embedding": "blocks" if inner else "input"}
    options = {"num_frames": zoo.FRAMES, "init_weights": False, **parts, **options}
    return get_peft_model(backbone, AIMConfig(**options)).eval()


def layers(model: nn.Module) -> list[AIMLayer]:
    return [module for module in model.modules() if isinstance(module, AIMLayer)]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@torch.no_grad()
def test_untrained_adapters_change_nothing(name):
    backbone, clips = zoo.build(name), zoo.make_clips()
    before = zoo.frame_average(backbone, clips)
    assert torch.equal(zoo.scores(adapt(backbone, init_weights=True)(clips)), before)


@torch.no_grad()
def test_every_block_is_adapted(name):
    model = adapt(zoo.build(name))
    depth = {"timm_vit": 3}.get(name, 4 if "swin" in name else 2)
    assert len(layers(model)) == depth
    assert all({"default"} == set(layer.aim_temporal_up) == set(layer.aim_joint_up) for layer in layers(model))


@torch.no_grad()
@pytest.mark.parametrize("branch", ["temporal", "spatial", "joint", "temporal_embedding"])
def test_every_branch_has_an_effect(name, branch):
    backbone, clips = zoo.build(name), zoo.make_clips()
    before = zoo.frame_average(backbone, clips)
    only = {b: b == branch for b in ("temporal", "spatial", "joint", "temporal_embedding")}
    assert not torch.allclose(zoo.scores(adapt(backbone, **only)(clips)), before, atol=1e-4)


@torch.no_grad()
def test_temporal_attention_does_not_mix_spatial_positions(name):
    """In the temporal branch, a token affects only its own spatial position, in all frames of its clip."""
    for layer in layers(adapt(zoo.build(name))):
        on_a_grid = "SwinTransformerBlock" in type(layer.base_layer).__name__
        positions = (4, 4) if on_a_grid else (16,)
        tokens, layout = torch.randn(2 * zoo.FRAMES, *positions, layer.anatomy.width), layer.anatomy.tokens
        changed = tokens.clone()
        changed[(1, *[2] * len(positions))] = torch.randn(layer.anatomy.width)  # clip 0, frame 1, one position
        before, after = (layer.over_time("default", zoo.FRAMES, layout.restored(x)) for x in (tokens, changed))
        differs = layout.batch_first(before != after).any(-1).unflatten(0, (2, zoo.FRAMES))
        expected = torch.zeros_like(differs)
        expected[(0, slice(None), *[2] * len(positions))] = True
        assert torch.equal(differs, expected)


@torch.no_grad()
def test_the_order_of_frames_matters(name):
    model, clips = adapt(zoo.build(name)), zoo.make_clips()
    assert not torch.allclose(zoo.scores(model(clips)), zoo.scores(model(clips.flip(1))), atol=1e-5)


@torch.no_grad()
def test_clips_never_mix(name):
    model, clips = adapt(zoo.build(name)), zoo.make_clips(batch=3)
    other = clips.clone()
    other[1] = torch.randn_like(other[1])
    before, after = zoo.scores(model(clips)), zoo.scores(model(other))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_gradients_reach_every_adapter_and_nothing_frozen(name):
    model, clips = adapt(zoo.build(name)).train(), zoo.make_clips()
    zoo.scores(model(clips)).square().sum().backward()
    for key, parameter in model.named_parameters():
        if ".aim_" in key:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
        else:
            assert parameter.grad is None and not parameter.requires_grad, key


@pytest.mark.parametrize("embedding", [True, False])
def test_every_combination_of_branches_trains_all_its_parameters(name, embedding):
    backbone, clips = zoo.build(name), zoo.make_clips()
    for wanted in (["spatial"], ["joint"], ["temporal"], ["spatial", "joint"], ["spatial", "temporal"]):
        branches = {branch: branch in wanted for branch in ("spatial", "temporal", "joint")}
        model = adapt(backbone, **branches, temporal_embedding=embedding).train()
        zoo.scores(model(clips)).square().sum().backward()
        assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
        backbone = model.unload()


@torch.no_grad()
def test_saved_adapters_score_the_same_on_a_fresh_copy(name, tmp_path):
    backbone, clips = zoo.build(name), zoo.make_clips()
    fresh = copy.deepcopy(backbone)
    model = adapt(backbone, temporal_adapters=2)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh, tmp_path)
    assert torch.equal(zoo.scores(loaded(clips)), zoo.scores(model(clips)))
    assert {path.name for path in Path(tmp_path).iterdir()} == {
        "README.md",  # the model card
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_adapters_loaded_for_inference_score_the_same_as_in_training(name, tmp_path):
    backbone, clips = zoo.build(name), zoo.make_clips()
    fresh = copy.deepcopy(backbone)
    model = adapt(backbone)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh, tmp_path, is_trainable=False)
    assert torch.equal(zoo.scores(loaded(clips)), zoo.scores(model(clips)))


@torch.no_grad()
def test_disabling_adapters_restores_the_backbone(name):
    backbone, clips = zoo.build(name), zoo.make_clips()
    before = zoo.frame_average(backbone, clips)
    model = adapt(backbone)
    with model.disable_adapter():
        assert torch.equal(zoo.scores(model(clips)), before)
    assert not torch.equal(zoo.scores(model(clips)), before)


@torch.no_grad()
def test_unloading_restores_the_backbone(name):
    backbone, clips = zoo.build(name), zoo.make_clips()
    untouched = copy.deepcopy(backbone)
    unloaded = adapt(backbone).unload()
    assert unloaded is backbone
    assert hooks(unloaded) == hooks(untouched)
    assert not any(isinstance(module, BaseTunerLayer) for module in unloaded.modules())
    assert repr(unloaded) == repr(untouched)
    assert set(vars(unloaded)) == set(vars(untouched))
    expected = untouched.state_dict()
    assert list(unloaded.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in unloaded.state_dict().items())
    assert [p.requires_grad for p in unloaded.parameters()] == [p.requires_grad for p in untouched.parameters()]
    images = clips.flatten(0, 1)
    assert torch.equal(zoo.scores(unloaded(images)), zoo.scores(untouched(images)))


@torch.no_grad()
def test_images_are_clips_of_one_frame(name):
    model, images = adapt(zoo.build(name)), zoo.make_clips(frames=1)[:, 0]
    assert torch.equal(zoo.scores(model(images)), zoo.scores(model(images[:, None])))


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3, 7])
def test_clips_of_any_length_can_be_run(name, frames):
    model = adapt(zoo.build(name))
    assert zoo.scores(model(zoo.make_clips(frames=frames))).isfinite().all()


def test_checkpointing_recomputes_and_gives_the_same_gradients(name, monkeypatch):
    if name.startswith(("torchvision", "open_clip", "openai_clip", "own")):
        pytest.skip("the model has no gradient checkpointing")
    clips = zoo.make_clips()
    wanted = gradients(adapt(zoo.build(name)).train(), clips)
    for reentrant in (True, False):
        if reentrant and name in ("timm_dinov3", "timm_eva02", "timm_beit"):
            continue  # timm passes keyword arguments to these blocks, which reentrant checkpointing does not take
        model = adapt(zoo.build(name)).train()
        if name.startswith("timm"):
            monkeypatch.setattr("timm.models._manipulate.use_reentrant_ckpt", lambda kind=reentrant: kind)
            model.set_grad_checkpointing(True)
        else:
            zoo.recompute(model, reentrant)
        normed = count_norms(model)
        with warnings.catch_warnings():
            if name == "hf_swin":  # nests the checkpoint of a layer in that of its stage, which warns without AIM, too
                warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
            got = gradients(model, clips)
        once = 2 * len(layers(model))  # before temporal and before spatial attention
        assert len(normed) == 2 * once or (name == "hf_swin" and len(normed) > 2 * once)
        assert wanted.keys() == got.keys()
        for key, gradient in wanted.items():
            assert torch.allclose(got[key], gradient, rtol=1e-4, atol=1e-6), key


def gradients(model: nn.Module, clips: torch.Tensor) -> dict[str, torch.Tensor]:
    zoo.scores(model(clips)).square().sum().backward()
    return {key: p.grad for key, p in model.named_parameters() if p.requires_grad}


def count_norms(model: nn.Module) -> list[int]:
    calls = []
    for layer in layers(model):
        layer.base_layer.get_submodule(layer.anatomy.norm1).register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@torch.no_grad()
def test_calling_a_block_outside_of_the_model_is_rejected(name):
    layer = layers(adapt(zoo.build(name)))[0]
    with pytest.raises(ValueError, match="outside of a call of the model"):
        first_tensor(layer(torch.randn(4, 16, layer.anatomy.width)))
