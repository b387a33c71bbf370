"""The map of an adapted model, and ``peft-aim inspect``."""

from __future__ import annotations

import re

import pytest
import timm
import zoo
from peft import get_peft_model

from peft_aim import AIMConfig
from peft_aim.__main__ import main


def printed(capsys, backbone, **options) -> str:
    get_peft_model(backbone, AIMConfig(num_frames=4, **options)).print_adapted_blocks()
    return capsys.readouterr().out


def test_the_map_says_which_block_got_what(capsys):
    text = printed(capsys, zoo.build("timm_vit"), num_labels=3, layers_to_transform=[1, 2], temporal_adapters=2)
    rows = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in row if cell] for row in rows]
    assert text.startswith("VisionTransformer with the adapter 'default': 2 of 3 blocks with attention adapted\n")
    assert ["blocks.0", "norm1 attn; norm2 mlp", "32", "-", "temporal embedding", "no"] in cells
    both = "temporal, first of two, temporal, spatial, joint"
    parts, call = "norm1 attn; norm2 mlp", "its own call on nothing but tokens"
    assert ["blocks.1 to blocks.2 (2)", parts, "32", "8", both, call] in cells
    assert ["temporal", "2", "552", "1,104"] in cells  # (32 x 8 + 8) + (8 x 32 + 32)
    assert ["temporal embedding", "1", "128", "128"] in cells
    assert ["head", "1", "99", "99"] in cells


def test_counts_add_up_to_what_is_trained(capsys):
    model = get_peft_model(zoo.build("timm_swin"), AIMConfig(num_labels=3))
    model.print_adapted_blocks()
    table = capsys.readouterr().out.split("parameters")[1].splitlines()[1:]
    *each, together = [int(line.split()[-1].replace(",", "")) for line in table if line]
    assert sum(each) == together == model.get_nb_trainable_parameters()[0]


def test_the_map_says_what_was_left_out(capsys):
    backbone = timm.create_model("cait_xxs24_224", img_size=32, embed_dim=32, num_heads=2, depth=1)
    with pytest.warns(UserWarning, match="adapts 1 of 3 blocks"):
        text = printed(capsys, backbone)
    assert "Left out:\n  blocks_token_only.0, blocks_token_only.1: it makes (2, 1, 32) of tokens (2, 4, 32)" in text
    text = printed(capsys, timm.create_model("caformer_s18"))
    assert "No attention in:\n  stages.0.blocks.0, stages.0.blocks.1, " in text and "SepConv cannot be run" in text


def test_the_map_of_another_adapter(capsys):
    model = get_peft_model(zoo.build("hf_vit"), AIMConfig(joint=False))
    model.add_adapter("other", AIMConfig(spatial=False))
    model.print_adapted_blocks("other")
    text = capsys.readouterr().out
    assert "adapter 'other'" in text and "spatial" not in text and "joint" in text
    with pytest.raises(ValueError, match="There is no adapter 'third' here. There are default, other."):
        model.print_adapted_blocks("third")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tiny_patch16_224", "12 of 12 blocks"),
        ("timm:test_vit", "blocks with attention adapted"),
        ("torchvision:swin_v2_t", "its projections around softmax attention, what it adds for space left out"),
        ("open_clip:ViT-S-16", "visual.transformer.resblocks.0"),
    ],
)
def test_inspect(name, expected, capsys):
    assert main(["inspect", name]) == 0
    assert expected in capsys.readouterr().out


def test_inspect_a_folder_of_transformers(tmp_path, capsys):
    zoo.build("hf_vit").config.save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path), "--temporal-adapters", "2"]) == 0
    assert "first of two" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet10t", "No block that AIM can adapt was found in ResNet"),
        ("vit_bse_patch16_224", "timm has no model 'vit_bse_patch16_224', did you mean .'vit_base_patch16_224'"),
        ("vit_base_patch16_clip_224.nope", "timm has no model 'vit_base_patch16_clip_224.nope', did you mean"),
        ("torchvision:vit_b16", "torchvision has no model 'vit_b16', did you mean .'vit_b_16'"),
        ("open_clip:vit", "open_clip has no model 'vit'"),
        ("keras:vit", "'keras:vit' is of a library that is not known here"),
        ("./nowhere/", "transformers has no config './nowhere/'"),
    ],
)
def test_inspect_says_why_not(name, message, capsys):
    assert main(["inspect", name]) == 1
    assert re.match(f"peft-aim inspect: {message}", capsys.readouterr().err)
