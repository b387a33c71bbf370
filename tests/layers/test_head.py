"""The parts of an adapter outside of blocks: its head, with dropout, and its final norm."""

from __future__ import annotations

import pytest
import torch
import zoo
from peft import PeftModel, get_peft_model

from peft_aim import AIMConfig


def adapt(name: str, **options: object) -> PeftModel:
    return get_peft_model(zoo.build(name), AIMConfig(**{"num_frames": zoo.FRAMES, "num_labels": 3, **options}))


def test_head_dropout_drops_the_same_features_in_all_frames_of_a_clip():
    model = adapt("timm_vit", head_dropout=0.5)
    head, inputs = model.base_model.model.head, []
    head.aim_head["default"].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        model.eval()(zoo.make_clips())
        model.train()(zoo.make_clips())
    kept = (inputs[1] != 0).unflatten(0, (-1, zoo.FRAMES))  # (B, T, D)
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert not torch.equal(kept[0], kept[1])
    assert torch.allclose(inputs[1][kept.flatten(0, 1)], 2 * inputs[0][kept.flatten(0, 1)])
    assert (inputs[0] != 0).all()


@pytest.mark.parametrize("name", zoo.ZOO)
def test_each_adapter_has_its_own_final_norm(name, tmp_path):
    clips, backbone = zoo.make_clips(), zoo.build(name)
    frozen = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    model = get_peft_model(backbone, AIMConfig(num_frames=zoo.FRAMES, final_norm=True)).eval()
    before = zoo.scores(model(clips))
    norms = [module for key, module in model.named_modules() if key.endswith("aim_norm.default")]
    assert norms or name == "hf_clip"  # its scores come from patches, but the norm is for the class token
    zoo.scores(model(clips)).square().sum().backward()
    used = [norm for norm in norms if norm.weight.grad is not None]
    assert used == norms
    with torch.no_grad():
        for norm in used:
            norm.weight.mul_(1.5)
    changed = zoo.scores(model(clips))
    assert torch.allclose(changed, before) == (not used)
    with model.disable_adapter():
        assert torch.equal(zoo.scores(model(clips)), before)
    model.save_pretrained(tmp_path)
    assert torch.equal(zoo.scores(PeftModel.from_pretrained(zoo.build(name), tmp_path).eval()(clips)), changed)
    plain = model.unload()
    assert all(torch.equal(tensor, frozen[key]) for key, tensor in plain.state_dict().items())
    assert plain.state_dict().keys() == frozen.keys()


def test_adapters_with_and_without_a_final_norm_share_a_backbone():
    model, clips = adapt("timm_vit", final_norm=True).eval(), zoo.make_clips()
    model.add_adapter("plain", AIMConfig(num_frames=zoo.FRAMES, num_labels=3))
    with torch.no_grad():
        model.base_model.model.norm.aim_norm["default"].weight.mul_(2)
    own = model(clips)
    model.set_adapter("plain")
    model.base_model.model.head.aim_head["plain"].load_state_dict(
        model.base_model.model.head.aim_head["default"].state_dict()
    )
    assert not torch.allclose(model(clips), own)
    model.delete_adapter("default")
    assert model(clips).shape == own.shape


def test_contradictory_options_are_rejected():
    with pytest.raises(
        ValueError, match="head_dropout=0.5 has no effect: it acts before the adapter's own head, and the adapter has"
    ):
        AIMConfig(head_dropout=0.5)
    with pytest.raises(ValueError, match=r"head_dropout=1.0 is not a number in \[0, 1\)"):
        AIMConfig(num_labels=2, head_dropout=1.0)
    with pytest.raises(ValueError, match="norm, which overlaps with the modules that AIM adapts"):
        adapt("timm_vit", final_norm=True, modules_to_save=["norm"])
