"""The convolution over time and the embedding of the frames inside the temporal adapter."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import zoo
from peft import PeftModel, get_peft_model
from torch import nn

from peft_aim import AIMConfig
from peft_aim.layers import AIMLayer
from peft_aim.layers.order import convolve, new_convolution, waves
from peft_aim.tracing import first_tensor

ORDERED = {"temporal_conv": True, "temporal_embedding": "blocks"}


def adapt(name: str, **options: object) -> PeftModel:
    return get_peft_model(zoo.build(name), AIMConfig(**{"num_frames": zoo.FRAMES, **ORDERED, **options})).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", zoo.ZOO)
def test_what_makes_order_visible_is_an_identity_at_the_start(name):
    backbone, clips = zoo.build(name), zoo.make_clips()
    before = zoo.frame_average(backbone, clips)
    model = get_peft_model(backbone, AIMConfig(num_frames=zoo.FRAMES, **ORDERED))
    assert torch.equal(zoo.scores(model.eval()(clips)), before)


@torch.no_grad()
@pytest.mark.parametrize("name", zoo.ZOO)
def test_what_makes_order_visible_is_saved_and_loaded(name, tmp_path):
    backbone, clips = zoo.build(name), zoo.make_clips()
    fresh = copy.deepcopy(backbone)
    model = get_peft_model(backbone, AIMConfig(num_frames=zoo.FRAMES, init_weights=False, **ORDERED)).eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh, tmp_path)
    assert torch.equal(zoo.scores(loaded(clips)), zoo.scores(model(clips)))
    assert not torch.equal(zoo.scores(model(clips)), zoo.scores(model(clips.flip(1))))


@torch.no_grad()
def test_a_block_computes_the_equation():
    model = adapt("timm_vit", init_weights=False, spatial=False).double()
    layer = next(module for module in model.modules() if isinstance(module, AIMLayer))
    block, (b, t, n, d) = layer.base_layer, (2, zoo.FRAMES, 5, layer.anatomy.width)
    x = torch.randn(b * t, n, d, dtype=torch.float64)
    h = block.norm1(x)
    sequences = h.view(b, t, n, d).transpose(1, 2).reshape(b * n, t, d)
    attended = first_tensor(block.attn(sequences)).view(b, n, t, d).transpose(1, 2)
    down, up = layer.aim_temporal_down["default"], layer.aim_temporal_up["default"]
    weight = layer.aim_temporal_conv["default"].weight.flatten(1)  # (R, 3)
    before = F.pad(down(h).view(b, t, n, -1), (0, 0, 0, 0, 1, 1))
    convolved = sum(weight[:, k] * before[:, k : k + t] for k in range(3))
    embedded = layer.aim_temporal_inner_embedding["default"].weight[:, :, None]
    expected = up(F.gelu(down(attended) + convolved + embedded)).view(x.shape)
    found = layer.over_time("default", t, x)
    assert (found - expected).abs().max() < 1e-10


def test_the_convolution_sees_the_neighboring_frames_of_its_clip_only():
    convolution, z = new_convolution(3, kernel=3), torch.randn(2 * 5, 2, 4, 3)  # 2 clips of 5 frames, on a grid
    changed = z.clone()
    changed[5, 1, 2] += 1  # the first frame of the second clip, one position
    with torch.no_grad():
        differs = (convolve(z, convolution, 5) != convolve(changed, convolution, 5)).any(-1)
    assert differs.nonzero().tolist() == [[5, 1, 2], [6, 1, 2]]


def test_patch_groups_are_convolved_apart():
    convolution, z = new_convolution(3, kernel=3), torch.randn(2 * 4, 6, 3)  # 1 clip of 2 frames, 4 groups
    with torch.no_grad():
        by_group = z.view(2, 4, 6, 3).transpose(0, 1)
        expected = torch.stack([convolve(group, convolution, 2) for group in by_group]).transpose(0, 1)
        assert torch.allclose(convolve(z, convolution, 2, groups=4), expected.reshape(z.shape), atol=1e-6)


def test_each_frame_has_an_embedding_of_its_own_and_they_average_to_zero():
    embedding = waves(8, 48)[0]
    apart = torch.cdist(embedding, embedding) + 10 * torch.eye(8)
    assert apart.min() > 1 and embedding.mean(0).abs().max() < 1e-6
    assert embedding.square().mean() == pytest.approx(1, abs=0.01)
    assert waves(1, 4).abs().max() < 1e-6


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_clips_of_any_length_are_taken(frames):
    model = adapt("timm_vit", init_weights=False)
    assert zoo.scores(model(torch.randn(2, frames, *zoo.make_clips().shape[2:]))).isfinite().all()


def test_order_is_learned_in_fewer_steps_than_in_the_paper():
    losses = {}
    for name, options in {"paper": {"temporal_conv": False, "temporal_embedding": "input"}, "ordered": {}}.items():
        torch.manual_seed(0)
        model, clips = adapt("timm_vit", num_labels=2, **options).train(), zoo.make_clips()[:1]
        pair, labels = torch.cat([clips, clips.flip(1)]), torch.tensor([0, 1])
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
        for _ in range(30):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(pair), labels)
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["ordered"] < 0.1 < 0.5 < losses["paper"], losses


def test_options_without_a_temporal_adapter_are_rejected():
    for name, value in {"temporal_conv": True, "temporal_embedding": "blocks"}.items():
        for temporal in (False, "conv"):
            wrong = (
                f"{name}={value!r} contradicts temporal={temporal!r}: it acts in the adapter after temporal attention"
            )
            with pytest.raises(ValueError, match=wrong):
                AIMConfig(temporal=temporal, **{name: value})
    with pytest.raises(ValueError, match=r"temporal_embedding='start' is not a setting. Use 'input', 'blocks'"):
        AIMConfig(temporal_embedding="start")
    assert AIMConfig(temporal_embedding=True).temporal_embedding == "input"


def test_parameters_are_shown_in_the_summary(capsys):
    model = adapt("timm_vit")
    model.print_adapted_blocks()
    text = capsys.readouterr().out
    assert "temporal convolution" in text and "temporal embedding" in text
    assert text.splitlines()[-1].split()[-1] == f"{model.get_nb_trainable_parameters()[0]:,}"
