"""Function transforms of torch.func on adapted models: grad, vmap and jvp agree with plain autograd."""

from __future__ import annotations

import pytest
import torch
import zoo
from peft import get_peft_model
from torch.func import functional_call, grad, jvp, vmap

from peft_aim import AIMConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # of attention under vmap
    pytest.mark.filterwarnings("ignore:`torch.jit.script`"),  # torch's own, in jvp
]


@pytest.fixture(params=["timm_vit", "hf_vit", "torchvision_vit"])
def model(request):
    options = {"temporal_embedding": "blocks", "temporal_conv": True, "num_labels": 3, "init_weights": False}
    return get_peft_model(zoo.build(request.param), AIMConfig(num_frames=zoo.FRAMES, **options)).eval().double()


def split(model):
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return trained, {**frozen, **dict(model.named_buffers())}


def test_grad_equals_backward(model):
    clips, (trained, frozen) = zoo.make_clips().double(), split(model)

    def loss(weights):
        return zoo.scores(functional_call(model, (weights, frozen), (clips,))).square().sum()

    found = grad(loss)(trained)
    zoo.scores(model(clips)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(found[name], parameter.grad), name


def test_gradients_of_each_clip_by_vmap(model):
    clips, (trained, frozen) = zoo.make_clips().double(), split(model)

    def loss(weights, clip):
        return zoo.scores(functional_call(model, (weights, frozen), (clip[None],))).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0), randomness="different")(trained, clips)
    for index, clip in enumerate(clips):
        model.zero_grad()
        zoo.scores(model(clip[None])).square().sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert torch.allclose(each[name][index], parameter.grad), name


def test_jvp_is_the_slope_along_a_direction(model, monkeypatch):
    clips = zoo.make_clips().double()
    direction = torch.randn_like(clips)
    monkeypatch.setattr("torch.backends.mha._is_fastpath_enabled", False)  # nor has torch's own layer
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # fused kernels have no forward mode
        _, slope = jvp(lambda x: zoo.scores(model(x)), (clips,), (direction,))
    step = 1e-6
    ahead, behind = (zoo.scores(model(clips + sign * step * direction)) for sign in (1, -1))
    assert torch.allclose(slope, (ahead - behind) / (2 * step), atol=1e-6)
