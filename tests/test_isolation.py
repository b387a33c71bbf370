"""Calls never leak into each other: frames of one are not taken for frames of another, whatever happens between."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import zoo
from peft import get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from peft_aim import AIMConfig

# The same number of images, 8, in clips of other lengths.
SHAPES = [(2, 4), (4, 2), (1, 8), (8, 1)]


def adapt(name: str) -> nn.Module:
    return get_peft_model(zoo.build(name), AIMConfig(num_frames=4, init_weights=False)).eval()


def gradients(model: nn.Module) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return found


def loss(model: nn.Module, clips: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)  # some backbones drop paths at random
    return zoo.scores(model(clips)).square().sum()


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm_vit", "timm_swin", "hf_vit"])
def test_threads_don_t_see_each_other(name):
    model = adapt(name)
    batches = [zoo.make_clips(*shape, seed=i) for i, shape in enumerate(SHAPES * 6)]
    alone = [zoo.scores(model(clips)) for clips in batches]

    def run(clips):
        with torch.no_grad():  # a setting of the thread
            return zoo.scores(model(clips))

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, batches))
    assert all(map(torch.equal, together, alone))


@pytest.mark.parametrize("kind", ["none", "reentrant", "non-reentrant"])
@pytest.mark.parametrize("name", ["timm_vit", "timm_swin", "hf_vit"])
def test_interleaved_calls_get_their_own_gradients(name, kind, monkeypatch):
    model = adapt(name).train()
    if kind != "none" and name == "hf_vit":
        zoo.recompute(model, reentrant=kind == "reentrant")
    elif kind != "none":
        monkeypatch.setattr("timm.models._manipulate.use_reentrant_ckpt", lambda: kind == "reentrant")
        model.set_grad_checkpointing(True)
    batches = [zoo.make_clips(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    alone = []
    for clips in batches:
        loss(model, clips).backward()
        alone.append(gradients(model))
    losses = [loss(model, clips) for clips in batches]
    for value, expected in zip(losses, alone, strict=True):
        loss(model, zoo.make_clips(3, 5))  # yet another one between the backward passes
        value.backward()
        assert all(map(torch.equal, gradients(model), expected))


@pytest.mark.parametrize("reentrant", [True, False])
def test_segments_of_several_blocks_can_be_recomputed(reentrant, monkeypatch):
    """As timm's checkpoint_seq(every=2) and torch's checkpoint_sequential do."""
    clips, other = zoo.make_clips(2, 4), zoo.make_clips(4, 2)
    model = adapt("timm_vit").train()
    loss(model, clips).backward()
    expected = gradients(model)

    backbone = model.base_model.model

    class Segmented(nn.Module):
        def __init__(self, blocks):
            super().__init__()
            self.blocks = blocks

        def forward(self, x):
            return checkpoint_sequential(self.blocks, 1, x, use_reentrant=reentrant)

    # timm iterates over blocks as a sequence, so one that checkpoints them all as one segment has to be a sequence
    monkeypatch.setattr(backbone, "blocks", nn.Sequential(Segmented(backbone.blocks)))
    backbone.grad_checkpointing = reentrant
    monkeypatch.setattr("timm.models.vision_transformer.checkpoint_seq", lambda blocks, x, **_: blocks(x))
    first = loss(model, clips)
    loss(model, other)
    first.backward()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients(model), expected, strict=True))


def test_a_whole_model_can_be_recomputed():
    model, clips = adapt("timm_vit"), zoo.make_clips(2, 4)
    loss(model, clips).backward()
    expected = gradients(model)
    value = checkpoint(model, clips, use_reentrant=False).square().sum()
    loss(model, zoo.make_clips(4, 2))
    value.backward()
    assert all(map(torch.equal, gradients(model), expected))


def test_an_exception_in_the_middle_leaves_nothing_behind():
    model, clips = adapt("timm_vit"), zoo.make_clips(2, 4)
    expected = model(clips)
    block = model.base_model.model.blocks[1]

    def fail(*_):
        raise RuntimeError("out of memory")

    for place in (block.attn, block.mlp, model.base_model.model.head):
        handle = place.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(zoo.make_clips(4, 2))
        handle.remove()
        with pytest.raises(ValueError, match="outside of a call"):
            block(torch.zeros(8, 17, 32))
        assert torch.equal(model(clips), expected)


def test_nothing_is_kept_of_past_calls():
    model = adapt("timm_vit")
    for shape in SHAPES:
        loss(model, zoo.make_clips(*shape)).backward()
    with torch.no_grad():
        model(zoo.make_clips(1, 1))
        model(zoo.make_clips(1, 1))
    kept = model.base_model.model.aim_clips._frames_of
    assert len(kept) <= 2 * 3  # at the most, tokens into and out of each block of the last call
