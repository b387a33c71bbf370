"""The summary of an adapted model, and ``peft-aim inspect``."""

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


def test_summary_lists_the_adapters_of_each_block(capsys):
    text = printed(capsys, zoo.build("timm_vit"), num_labels=3, layers_to_transform=[1, 2], temporal_adapters=2)
    rows = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in row if cell] for row in rows]
    assert text.startswith("VisionTransformer with the adapter 'default': 2 of 3 blocks with attention are adapted\n")
    assert ["block", "parts", "width", "bottleneck", "adapters", "temporal branch"] in cells
    assert ["blocks.0", "norm1 attn; norm2 mlp", "32", "-", "temporal embedding", "none"] in cells
    both = "temporal (before attention), temporal, spatial, joint"
    parts, kind = "norm1 attn; norm2 mlp", "its own forward on the tokens alone"
    assert ["blocks.1 to blocks.2 (2)", parts, "32", "8", both, kind] in cells
    assert ["parameters", "count", "each", "total"] in cells
    assert ["temporal", "2", "552", "1,104"] in cells  # (32 x 8 + 8) + (8 x 32 + 32)
    assert ["temporal embedding", "1", "128", "128"] in cells
    assert ["head", "1", "99", "99"] in cells


def test_counts_add_up_to_the_trainable_parameters(capsys):
    model = get_peft_model(zoo.build("timm_swin"), AIMConfig(num_labels=3))
    model.print_adapted_blocks()
    table = capsys.readouterr().out.split("parameters")[1].splitlines()[1:]
    *each, total = [int(line.split()[-1].replace(",", "")) for line in table if line]
    assert sum(each) == total == model.get_nb_trainable_parameters()[0]


def test_summary_lists_skipped_blocks(capsys):
    backbone = timm.create_model("cait_xxs24_224", img_size=32, embed_dim=32, num_heads=2, depth=1)
    with pytest.warns(UserWarning, match="adapts 1 of 3 blocks"):
        text = printed(capsys, backbone)
    assert "Skipped:\n  blocks_token_only.0, blocks_token_only.1: it maps tokens (2, 4, 32) to (2, 1, 32)" in text
    text = printed(capsys, timm.create_model("caformer_s18"))
    assert "Without attention:\n  stages.0.blocks.0, stages.0.blocks.1, " in text
    assert "a convolution over time is possible: name them in target_modules, with temporal='auto'" in text


def test_summary_of_an_inactive_adapter(capsys):
    model = get_peft_model(zoo.build("hf_vit"), AIMConfig(joint=False))
    model.add_adapter("other", AIMConfig(spatial=False))
    model.print_adapted_blocks("other")
    text = capsys.readouterr().out
    assert "adapter 'other'" in text and "spatial" not in text and "joint" in text
    with pytest.raises(ValueError, match="This model has no adapter 'third'. Use one of default, other."):
        model.print_adapted_blocks("third")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tiny_patch16_224", "12 of 12 blocks"),
        ("timm:test_vit", "blocks with attention are adapted"),
        ("torchvision:swin_v2_t", "softmax attention with its own projections, without its spatial terms"),
        ("open_clip:ViT-S-16", "visual.transformer.resblocks.0"),
    ],
)
def test_inspect(name, expected, capsys):
    assert main(["inspect", name]) == 0
    assert expected in capsys.readouterr().out


def test_inspect_a_transformers_folder(tmp_path, capsys):
    zoo.build("hf_vit").config.save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path), "--temporal-adapters", "2"]) == 0
    assert "temporal (before attention)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet10t", "ResNet has no block that AIM can adapt"),
        ("vit_bse_patch16_224", "timm has no model 'vit_bse_patch16_224', did you mean .'vit_base_patch16_224'"),
        ("vit_base_patch16_clip_224.nope", "timm has no model 'vit_base_patch16_clip_224.nope', did you mean"),
        ("torchvision:vit_b16", "torchvision has no model 'vit_b16', did you mean .'vit_b_16'"),
        ("open_clip:vit", "open_clip has no model 'vit'"),
        ("keras:vit", "'keras' in 'keras:vit' is not a supported library"),
        ("./nowhere/", "transformers cannot load the config of './nowhere/'"),
    ],
)
def test_inspect_reports_errors(name, message, capsys):
    assert main(["inspect", name]) == 1
    assert re.match(f"peft-aim inspect: {message}", capsys.readouterr().err)
