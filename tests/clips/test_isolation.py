"""Calls are isolated: each uses its own number of frames, whatever other calls happen in between."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import zoo
from peft import get_peft_model
from timm.models import checkpoint_seq as timm_checkpoint_seq
from torch import nn
from torch.utils.checkpoint import checkpoint

from peft_aim import AIMConfig

# The same number of images, 8, in clips of different lengths.
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
def test_threads_are_isolated(name):
    model = adapt(name)
    batches = [zoo.make_clips(*shape, seed=i) for i, shape in enumerate(SHAPES * 6)]
    alone = [zoo.scores(model(clips)) for clips in batches]

    def run(clips):
        with torch.no_grad():  # a setting per thread
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
        loss(model, zoo.make_clips(3, 5))  # another call between the backward passes
        value.backward()
        assert all(map(torch.equal, gradients(model), expected))


@pytest.mark.parametrize("reentrant", [True, False])
def test_segments_of_several_blocks_can_be_recomputed(reentrant, monkeypatch):
    """Blocks after the first one of a segment receive tokens that were recorded in no call."""
    model, clips, runs = adapt("timm_vit").train(), zoo.make_clips(2, 4), []
    loss(model, clips).backward()
    expected = gradients(model)
    in_pairs = partial(timm_checkpoint_seq, every=2, use_reentrant=reentrant)
    monkeypatch.setattr("timm.models.vision_transformer.checkpoint_seq", in_pairs)
    model.set_grad_checkpointing(True)
    model.base_model.model.blocks[1].attn.register_forward_pre_hook(lambda *_: runs.append(1))
    first = loss(model, clips)
    loss(model, zoo.make_clips(4, 2))
    assert len(runs) == 2
    first.backward()
    assert len(runs) == 3
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients(model), expected, strict=True))


@torch.no_grad()
def test_threads_are_isolated_in_compiled_blocks():
    """Each thread waits between two blocks until the other one is there."""
    model, clips, other = adapt("timm_vit"), zoo.make_clips(2, 4, seed=1), zoo.make_clips(4, 2, seed=2)
    expected = model(clips), model(other)
    meet = threading.Barrier(2)

    class Meet(nn.Module):
        def forward(self, x):
            if threading.current_thread() is not threading.main_thread():
                meet.wait(60)
            return x

    backbone = model.base_model.model
    for block in backbone.blocks:
        block.compile(backend="eager")
    first, *rest = backbone.blocks
    backbone.blocks = nn.Sequential(first, Meet(), *rest)

    def run(clips):
        with torch.no_grad():
            return model(clips)

    alone = run(clips), run(other)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, (clips, other)))
    for results in (alone, together):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(results, expected, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by torch.compile
def test_compiled_blocks_can_be_recomputed():
    model, clips = adapt("timm_vit").train(), zoo.make_clips(2, 4)
    loss(model, clips).backward()
    expected = gradients(model)
    model.set_grad_checkpointing(True)
    for block in model.base_model.model.blocks:
        block.compile(backend="eager")
    value = loss(model, clips)
    loss(model, zoo.make_clips(4, 2))
    value.backward()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients(model), expected, strict=True))


def test_a_whole_model_can_be_recomputed():
    model, clips = adapt("timm_vit"), zoo.make_clips(2, 4)
    loss(model, clips).backward()
    expected = gradients(model)
    value = checkpoint(model, clips, use_reentrant=False).square().sum()
    loss(model, zoo.make_clips(4, 2))
    value.backward()
    assert all(map(torch.equal, gradients(model), expected))


def test_exceptions_during_a_call_leave_no_state():
    model, clips = adapt("timm_vit"), zoo.make_clips(2, 4)
    expected = model(clips)
    block = model.base_model.model.blocks[1]

    def fail(*_):
        raise RuntimeError("out of memory")

    for module in (block.attn, block.mlp, model.base_model.model.head):
        handle = module.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(zoo.make_clips(4, 2))
        handle.remove()
        with pytest.raises(ValueError, match="outside of a call"):
            block(torch.zeros(8, 17, 32))
        assert torch.equal(model(clips), expected)


def test_past_calls_are_forgotten():
    model = adapt("timm_vit")
    for shape in SHAPES:
        loss(model, zoo.make_clips(*shape)).backward()
    with torch.no_grad():
        model(zoo.make_clips(1, 1))
        model(zoo.make_clips(1, 1))
    kept = model.base_model.model.aim_clips.frames._of_storage
    assert len(kept) <= 2 * 3  # at most the inputs and outputs of each block in the last call
