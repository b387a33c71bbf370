"""Exported models: the number of frames may stay open, also around that of the temporal embedding."""

from __future__ import annotations

import warnings

import pytest
import torch
import zoo
from peft import get_peft_model
from torch.export import Dim, export

from peft_aim import AIMConfig


def adapt(name: str, embedding: str, causal: bool = False):
    options = {"temporal_embedding": embedding, "spatial": False, "joint": False, "init_weights": False}
    options |= {"causal": causal}
    model = get_peft_model(zoo.build(name), AIMConfig(num_frames=zoo.FRAMES, **options))
    return model.eval().base_model.model


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "embedding", "causal"),
    [("timm_vit", "input", False), ("timm_clip", "blocks", False), ("timm_vit", "blocks", True)],
)
def test_an_exported_model_takes_clips_of_any_length(name, embedding, causal):
    model, clips = adapt(name, embedding, causal), zoo.make_clips(frames=zoo.FRAMES)
    exported = export(model, (clips,), dynamic_shapes=({1: Dim("T", min=2, max=16)},), strict=False).module()
    for frames in (2, zoo.FRAMES, 7):
        clips = zoo.make_clips(frames=frames)
        assert torch.allclose(exported(clips), model(clips), atol=1e-6)


@torch.no_grad()
def test_the_old_onnx_exporter_says_what_it_fixes(monkeypatch):
    """It traces, as here, but also folds all shapes into constants."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.jit.trace(adapt("timm_vit", "input"), zoo.make_clips(), check_trace=False)
    messages = [str(warning.message) for warning in caught]
    expected = "makes the shape of these clips part of the model: (2, 4, 3, 32, 32), whatever dynamic_axes says."
    assert any(expected in message and message.endswith("use dynamo=True.") for message in messages)
