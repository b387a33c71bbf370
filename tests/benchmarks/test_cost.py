"""The cost benchmark: its reference implementation computes what AIM does, its counts are right, and it runs."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
import zoo
from torch import nn

from benchmarks.cost.__main__ import main, rows
from benchmarks.cost.plan import QUICK, Plan
from benchmarks.cost.swap import swapping
from benchmarks.cost.tables import FROZEN, MOST_IMAGES, PLAIN, REFERENCE, by_row, goals
from benchmarks.measuring.counting import Alive, cost_of_step
from benchmarks.methods import rivals
from benchmarks.methods.reference import reference_aim
from peft_aim.saving.weights import adapter_weights


@pytest.mark.parametrize("name", ["timm_vit", "timm_clip"])
@torch.no_grad()
def test_the_reference_implementation_scores_as_aim_does(name):
    backbone, clips = zoo.build(name), zoo.make_clips()
    model = rivals.aim(copy.deepcopy(backbone), 3, zoo.FRAMES, init_weights=False).eval()
    twin = reference_aim(backbone, 3, zoo.FRAMES).eval()
    wanted = adapter_weights(model, "default")
    for block, layer in enumerate(m for m in twin.modules() if type(m).__name__ == "ReferenceBlock"):
        for branch in ("temporal", "spatial", "joint"):
            for end in ("down", "up"):
                for kind in ("weight", "bias"):
                    tensor = wanted[f"blocks.{block}.aim_{branch}_{end}.{kind}"]
                    layer.get_parameter(f"{branch}.{end}.{kind}").copy_(tensor)
    embedding = next(tensor for key, tensor in wanted.items() if "aim_temporal_embedding" in key)
    twin.get_parameter(next(key for key, _ in twin.named_parameters() if "embedding" in key)).copy_(
        embedding[:, :, None]
    )
    twin.model.head.load_state_dict({kind: wanted[f"head.aim_head.{kind}"] for kind in ("weight", "bias")})
    assert torch.allclose(twin(clips), model(clips), atol=1e-5)


def test_counts_of_a_linear_layer():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6))
    found = cost_of_step(model, torch.randn(2, 4), torch.sum)
    assert found["forward_gmac"] == pytest.approx((2 * 4 * 5 + 2 * 5 * 6) / 1e9)
    assert found["backward_gmac"] == pytest.approx((2 * 4 * 5 + 2 * 2 * 5 * 6) / 1e9)
    assert found["saved_mb"] == pytest.approx(4 * (2 * 4 + 2 * 5) / 1e6)


def test_peak_of_memory():
    with Alive() as alive:
        kept = torch.ones(10)  # 40 bytes
        for _ in range(3):
            torch.ones(20).view(4, 5)  # 80 bytes, freed at once
        kept.add_(1)
    assert alive.peak == 120 and alive.bytes == 40


def test_blocks_that_the_reference_implementation_does_not_cover_are_rejected():
    with pytest.raises(ValueError, match="Block computes something other than"):
        reference_aim(zoo.build("timm_dinov2"), 3, zoo.FRAMES)


def test_quick(tmp_path, capsys):
    main(["--quick", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "cost.json").read_text())
    names = [row["row"] for row in found["rows"]]
    assert names[: len(rows(QUICK))] == list(rows(QUICK)) and sum(name.endswith(", compiled") for name in names) == 3
    assert all(len(row["step_seconds"]) == len(row["inference_seconds"]) == QUICK.rounds for row in found["rows"])
    text = (tmp_path / "cost.md").read_text()
    assert all(name in text for name in names)
    assert "Goals" not in text  # they are those of CLIP ViT-B/16
    assert goals(found, by_row(found["rows"]))["graph breaks"][:2] == (0, 0)
    assert found["swapping"]["recompiled_by_hotswap"] == 0
    assert found["growth"]["adapters"]["exponents"]["adapters_mb"] == pytest.approx(1)
    assert {path.name for path in tmp_path.iterdir()} == {"cost.json", "cost.md", "cost_growth.svg", "cost_pareto.svg"}


def test_adapters_of_models_in_half_precision_are_saved_in_it():
    sizes = swapping(replace(QUICK, dtype="bfloat16"))["file_bytes"]
    assert sizes["as trained"] == pytest.approx(sizes["float16"], abs=100)


def test_options_change_the_plan(monkeypatch, tmp_path):
    plans = []

    def stop(plan):
        plans.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.cost.__main__.measure", stop)
    options = ["--device", "cuda", "--dtype", "bfloat16", "--batch", "3", "--rounds", "1", "--output", str(tmp_path)]
    for more in ([], ["--backbone", "test_vit"]):
        with pytest.raises(KeyboardInterrupt):
            main([*options, *more])
    same, other = plans
    changes = {"device": "cuda", "dtype": "bfloat16", "batch": 3, "rounds": 1}
    assert same == replace(Plan(), **changes)
    only = {"backbone": "test_vit", "with_gelu": None, "attach": {"test_vit": "test_vit"}}
    assert other == replace(Plan(), **changes, **only)


@pytest.mark.parametrize("option", [["--quick"], ["--batch", "2"], ["--backbone", "test_vit"]])
def test_other_measurements_never_overwrite_the_results(option, capsys):
    with pytest.raises(SystemExit):
        main(option)
    assert f"{option[0]} would overwrite the results in" in capsys.readouterr().err


def test_attention_and_convolutions_are_compared_in_a_record_of_their_own(tmp_path):
    main(["--quick", "--over-time", "--output", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"cost_over_time.json", "cost_over_time.md"}
    found = by_row(json.loads((tmp_path / "cost_over_time.json").read_text())["rows"])
    assert list(found) == [FROZEN, PLAIN, REFERENCE, *rivals.OVER_TIME]
    frozen, aim, conv = (found[name]["forward_gmac"] for name in (FROZEN, PLAIN, "convolution over time alone"))
    assert frozen < conv < aim


def test_attaching_is_measured_in_a_record_of_its_own(tmp_path):
    main(["--quick", "--attach", "--output", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"cost_attach.json", "cost_attach.md"}
    (row,) = json.loads((tmp_path / "cost_attach.json").read_text())["rows"]
    assert row["ratio"] <= MOST_IMAGES and row["runs"][1:] == [1, 1]  # each adapter is checked by one run
    assert f"measured: at most {row['ratio']:.2f}" in (tmp_path / "cost_attach.md").read_text()


def test_mixed_batches_take_as_much_arithmetic_as_one_adapter(tmp_path):
    main(["--quick", "--mixed", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "cost_mixed.json").read_text())["rows"]
    assert [row["adapters"] for row in rows] == [1, 2, 8]
    assert all(row["arithmetic_ratio"] < 1.1 and row["largest_difference"] == 0 for row in rows)


def test_the_memory_of_quantized_backbones_is_compared(tmp_path):
    pytest.importorskip("torchao", reason="torchao is not installed, which the benchmark quantizes with")
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed, which the benchmark quantizes with")
    main(["--quick", "--quantized", "--output", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"cost_quantized.json", "cost_quantized.md"}
    sizes = [row["backbone_bytes"] for row in json.loads((tmp_path / "cost_quantized.json").read_text())["rows"]]
    assert max(sizes) == sizes[0]
