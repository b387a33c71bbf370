"""Files that are not official checkpoints, and other backbones than theirs, are rejected with the reason."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
from official import SIZES, WIDTH, frozen, official, open_clip_model, renamed, tf_clip, tf_vit, timm_clip, timm_vit
from torch import Tensor, nn

from peft_aim.convert import from_official, same_equations

# Errors: the file.


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle"])
def test_code_in_a_file_is_not_run(kind, tmp_path):
    state, path, trap = official("clip"), tmp_path / "evil.pth", tmp_path / "trap"
    content = {"state_dict": state, "meta": Evil(trap)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Evil(trap), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(ValueError) as error:
        from_official(path, timm_clip(state))
    assert not trap.exists()
    if kind != "pickle":
        assert re.search(
            r"evil.pth contains more than tensors, and loading it would run code: posix\.mkdir\. None of it was run",
            str(error.value),
        )
        assert 'torch.save({"state_dict":' in str(error.value)


def test_unreadable_files_are_rejected(tmp_path):
    backbone = nn.Identity()
    with pytest.raises(ValueError, match=r"missing.pth cannot be read: .*No such file"):
        from_official(tmp_path / "missing.pth", backbone)
    with pytest.raises(ValueError, match="cannot be read: .*directory"):
        from_official(tmp_path, backbone)
    torch.save({"state_dict": official("clip")}, tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    for length in (0, 10, len(whole) // 2):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.pth is broken, or is not a torch.save file \(.*Get the file again"):
            from_official(tmp_path / "cut.pth", backbone)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth contains a list instead of a state dict"):
        from_official(tmp_path / "list.pth", backbone)
    with pytest.raises(ValueError, match="checkpoint=3 is neither a path nor a dict"):
        from_official(3, backbone)


def test_checkpoints_of_st_adapter_are_rejected_with_the_difference(tmp_path):
    """Its official code saves the trained weights alone, under "model"."""
    name = "transformer.resblocks.0.adapter_pre_mlp."
    weights = {f"{name}fc1.weight": torch.ones(4, 8), f"{name}conv.weight": torch.ones(4, 1, 3, 1, 1)}
    torch.save({"model": weights, "next_epoch": 3}, tmp_path / "checkpoint-2.pth")
    message = rf"is a checkpoint of ST-Adapter \({name}fc1.weight\). .*Train a new one with temporal='conv'"
    with pytest.raises(ValueError, match=message):
        from_official(tmp_path / "checkpoint-2.pth", nn.Identity())


def changed(state: dict[str, Tensor], drop: str = " ", **new: Tensor) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not re.search(drop, name)} | new


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: changed(s, "_Adapter"), "is not an AIM checkpoint: none of its 3. tensors belongs to an S_Adapter"),
        (lambda s: {}, "none of its 0 tensors"),
        (
            lambda s: renamed(s, {"transformer.resblocks": "layers.0.blocks"}),
            r"the checkpoint of a Swin \(backbone.layers.0.blocks.0.attn.in_proj_weight\). Only the layouts of CLIP "
            "and of ViT",
        ),
        (
            lambda s: renamed(s, {"transformer.resblocks": "h"}),
            "but its blocks are named neither backbone.transformer.resblocks.N",
        ),
        (lambda s: changed(s, "cls_head"), "has a head of no tensors instead of cls_head.fc_cls.weight and .bias"),
        (
            lambda s: changed(s, r"0\.(S_Adapter.D_fc2|ln_1)|temporal_embedding|ln_post.bias|conv1"),
            "lacks backbone.conv1.weight, backbone.temporal_embedding, backbone.ln_post.bias, "
            "backbone.transformer.resblocks.0.ln_1.weight, backbone.transformer.resblocks.0.ln_1.bias, "
            "backbone.transformer.resblocks.0.S_Adapter.D_fc2.weight and 1 more. Get the complete file again.",
        ),
        (
            lambda s: changed(s, r"1\.T_Adapter_in"),
            "lacks backbone.transformer.resblocks.1.T_Adapter_in.D_fc1.weight",
        ),
        (
            lambda s: changed(s, r"0\.T_Adapter_in"),
            "lacks backbone.transformer.resblocks.0.T_Adapter_in.D_fc1.weight",
        ),
        (lambda s: changed(s, r"resblocks\.0"), r"has gaps in its blocks \[1\]"),
        (
            lambda s: changed(s, **{"backbone.ln_post.weight": torch.ones(3)}),
            r"do not match its width 128 and its bottleneck width 24: backbone.ln_post.weight \(3,\)",
        ),
        (
            lambda s: changed(s, **{"backbone.transformer.resblocks.1.S_Adapter.D_fc1.bias": torch.ones(3)}),
            r"do not match its width 128 and its bottleneck width 24: block 1 spatial_down.bias \(3,\)",
        ),
    ],
)
def test_incomplete_and_other_checkpoints_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        from_official(change(official("clip", 2)), nn.Identity())


# Errors: the backbone.


def test_random_weights_are_rejected():
    state, other = official("clip"), {k: torch.randn_like(t) for k, t in official("clip").items()}
    for build in (timm_clip, tf_clip, open_clip_model):
        with pytest.raises(ValueError, match="was not trained on the weights of this") as error:
            from_official(state, build(other))
        message = str(error.value)
        assert re.search(
            r": (29 of 29|37 of 37) frozen tensors have no match in it \(differences are relative root mean", message
        )
        assert re.search(r"\n  backbone.conv1.weight: the closest is .*, which differs by 1..\..%", message)
        assert message.count("\n  backbone.") == 6 and re.search(r"\n  \.\.\. and (23|31) more", message)
        assert message.endswith(
            "Load the pretrained weights that the checkpoint was trained on into the backbone first."
        )


def test_a_single_different_norm_is_named():
    state = official("clip")
    backbone = tf_clip(state)
    with torch.no_grad():
        backbone.vision_model.encoder.layers[1].layer_norm2.weight.mul_(1.01)
    with pytest.raises(ValueError) as error:
        from_official(state, backbone)
    assert str(error.value) == (
        "checkpoint={...} was not trained on the weights of this CLIPVisionModelWithProjection: 1 of 37 frozen "
        "tensors have no match in it (differences are relative root mean squares).\n"
        "  backbone.transformer.resblocks.1.ln_2.weight: the closest is "
        "vision_model.encoder.layers.1.layer_norm2.weight, which differs by 1.0%\n"
        "Most are equal: give exactly the image model that the checkpoint was trained on, not a variant."
    )


def test_a_single_different_part_of_a_projection_is_named():
    state = official("imagenet")
    backbone = tf_vit(state)
    value = next(m for n, m in backbone.named_modules() if ".1." in n and n.endswith(("value", "v_proj")))
    with torch.no_grad():
        value.bias.add_(1)
    with pytest.raises(
        ValueError, match=r"\n  backbone.blocks.1.attn.qkv.bias \(value\): the closest is .*1.attention"
    ):
        from_official(state, backbone)


def test_other_sizes_are_rejected():
    state = official("clip")
    with pytest.raises(ValueError, match=r"has 2 blocks of width 128, but this VisionTransformer has 1 of width 128"):
        from_official(state, timm_clip_of_size(depth=1))
    with pytest.raises(ValueError, match=r"has 2 blocks of width 128, but this VisionTransformer has 2 of width 64"):
        from_official(state, timm_clip_of_size(embed_dim=64))
    with pytest.raises(
        ValueError,
        match=r"backbone.positional_embedding: no tensor of its shape \(17, 128\) is left\n  backbone.conv1",
    ):
        from_official(state, timm_clip_of_size(patch_size=16))


def timm_clip_of_size(**sizes: int) -> nn.Module:
    return timm.create_model("vit_base_patch16_clip_quickgelu_224", **{**SIZES, **sizes}, num_heads=2, num_classes=0)


def test_additional_weights_are_rejected():
    state = official("imagenet")
    with_norm_pre = timm_vit(state)
    with_norm_pre.norm_pre = nn.LayerNorm(WIDTH)
    with pytest.raises(ValueError, match="weights that checkpoint={...} does not have: blocks.0.ls1.gamma, .*ls2"):
        from_official(
            state, fill_all_but(timm.create_model("vit_base_patch16_224", **SIZES, num_heads=2, init_values=1))
        )
    with pytest.raises(
        ValueError, match="weights that checkpoint={...} does not have: norm_pre.weight, norm_pre.bias"
    ):
        from_official(state, with_norm_pre)


def fill_all_but(model: nn.Module) -> nn.Module:
    model.load_state_dict(frozen(official("imagenet")), strict=False)
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda state: timm_clip(state, ""),
        lambda state: tf_clip(state, act="gelu"),
        lambda state: open_clip_model(state, quick_gelu=False),
    ],
)
def test_another_activation_than_quickgelu_is_rejected_and_named(build):
    state = official("clip")
    with pytest.raises(
        ValueError,
        match=r"is GELU, but checkpoint={...}, in the layout of CLIP, was trained with QuickGELU "
        r"\(\d\.\d% difference\)\. Use the variant with quickgelu in its name",
    ):
        from_official(state, build(state))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_another_activation_is_detected_in_half_precision(half):
    state = official("clip")
    with pytest.raises(ValueError, match="is GELU(| by tanh), but .* was trained with QuickGELU"):
        from_official(state, timm_clip({key: tensor.to(half) for key, tensor in state.items()}, ""))


@pytest.mark.parametrize(
    ("act", "found"), [("quick_gelu", "QuickGELU"), ("gelu_pytorch_tanh", "GELU by tanh"), ("relu", "ReLU")]
)
def test_another_activation_than_gelu_is_rejected_and_named(act, found):
    state = official("imagenet")
    with pytest.raises(ValueError, match=f"is {found}, but checkpoint=.*, in the layout of vit_imagenet, was trained"):
        from_official(state, tf_vit(state, act))


def test_unknown_activations_are_rejected():
    state = official("imagenet")
    with pytest.raises(ValueError, match="is none of QuickGELU, GELU, GELU by tanh, ReLU"):
        from_official(state, tf_vit(state, "silu"))


def test_another_number_of_heads_is_rejected(monkeypatch):
    monkeypatch.setattr(same_equations, "SMALLEST", WIDTH)
    state = official("clip")
    with pytest.raises(
        ValueError, match="attention of blocks.0 .* has 4 heads, .* was trained with 2 heads of width 64"
    ):
        from_official(state, timm_clip(state, num_heads=4))


def test_another_readout_is_rejected():
    state = official("clip")
    with pytest.raises(
        ValueError, match="has 0 norms .*that its output depends on.*Give the variant .*CLIPVisionModelWithProjection"
    ):
        from_official(state, tf_clip(state, "classifier"))
    state = official("imagenet")
    with pytest.raises(ValueError, match="is not called on the class token after the final norm 'fc_norm'"):
        from_official(state, timm_vit(state, global_pool="avg"))


def test_another_computation_with_the_same_weights_is_rejected():
    state = official("clip")

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    backbone = timm_clip(state)
    backbone.blocks[1].ls2 = Scaled()
    with pytest.raises(ValueError, match=r"but in blocks.1 it computes something other than the official CLIP model"):
        from_official(state, backbone)
    backbone = timm_clip(state)
    backbone.pos_drop = Scaled()
    backbone.norm_pre.eps = 0.0
    backbone.norm_pre.register_forward_hook(lambda module, args, output: 1.1 * output)
    with pytest.raises(ValueError, match=r"but in the patch embedding it computes something other"):
        from_official(state, backbone)
    backbone = timm_clip(state)
    backbone.blocks[1].register_forward_pre_hook(lambda module, args: (1.1 * args[0], *args[1:]))
    with pytest.raises(ValueError, match=r"but before blocks.1 it computes something other"):
        from_official(state, backbone)


def test_models_without_weights_are_rejected():
    state = official("clip")
    with pytest.raises(ValueError, match="on the device 'meta', without weights"):
        from_official(state, timm_clip(state).to("meta"))


def test_attention_with_another_scale_is_rejected():
    state = official("clip")
    backbone = timm_clip(state)
    backbone.blocks[0].attn.fused_attn = False
    backbone.blocks[0].attn.scale *= 3
    with pytest.raises(ValueError, match=r"attention of blocks.0 .* is not plain softmax attention"):
        from_official(state, backbone)


def test_mlps_whose_layers_are_not_called_are_rejected():
    class Fused(nn.Module):
        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.fc1, self.fc2, self.act = mlp.fc1, mlp.fc2, mlp.act

        def forward(self, x: Tensor) -> Tensor:
            h = self.act(nn.functional.linear(x, self.fc1.weight, self.fc1.bias))
            return self.fc2(h)

    state = official("clip")
    backbone = timm_clip(state)
    for block in backbone.blocks:
        block.mlp = Fused(block.mlp)
    with pytest.raises(ValueError, match="blocks.0.mlp.fc1 and blocks.0.mlp.fc2 .* are not called, so its activation"):
        from_official(state, backbone)


def test_backbones_without_final_norm_are_rejected():
    state = official("imagenet")
    with pytest.raises(ValueError, match=r"has 0 norms after its last block \(none\) that its output depends on"):
        from_official(state, timm_vit(state, final_norm=False))


def test_adapted_backbones_are_rejected():
    state = official("clip")
    backbone = timm_clip(state)
    adapted = from_official(state, backbone)
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        from_official(state, backbone)
    with pytest.raises(ValueError, match="The backbone is a PeftModel already"):
        from_official(state, adapted)


def test_wrong_scales_are_rejected_without_side_effects():
    state = official("clip")
    model = open_clip_model(state)
    with pytest.raises(ValueError, match="scale='1' is not a finite number"):
        from_official(state, model, "1")
    assert model.visual.proj is not None
