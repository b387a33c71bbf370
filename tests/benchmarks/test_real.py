"""The benchmark on real videos, on drawn ones and a small backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from benchmarks.methods.attentive import AttentivePooling
from benchmarks.methods.rivals import trained_parameters
from benchmarks.methods.st_adapter import STAdapter, st_adapter
from benchmarks.real import __main__ as real
from benchmarks.real import defaults, rows, tables, trial, videos
from benchmarks.real.blur import blur
from benchmarks.training.trials import Trials
from peft_aim.video.data import Preprocessing, open_video
from peft_aim.video.demo.digits import write_video
from peft_aim.video.recipe import Recipe

PEOPLE = {"train": (1, 2, 14), "val": (19, 20)}
GREY = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)


def small_vit() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A file of decoded videos: each person shows each sign once, in frames of their own."""
    frames = {}
    for split, people in PEOPLE.items():
        for word in (*videos.REVERSIBLE, "call"):
            for person in people:
                name = f"signs/{split}/{word}/{word}_{person:02}_1.mp4"
                frames[name] = torch.randint(256, (16, 3, 40, 40), dtype=torch.uint8)
        frames[f"clips/{split}/fight/a.mp4"] = torch.randint(256, (9, 3, 40, 40), dtype=torch.uint8)
        frames[f"clips/{split}/calm/b.mp4"] = torch.randint(256, (9, 3, 40, 40), dtype=torch.uint8)
    torch.save(frames, tmp_path / "frames.pt")
    return tmp_path / "frames.pt"


def test_tasks_are_split_by_person_and_development_never_sees_val(cached):
    for name in ("signs", "order"):
        task = videos.TASKS[name](cached)
        assert {video.group for video in task.train} == {"1", "2", "14"}
        assert {video.group for video in task.held_out} == {"19", "20"}
        chosen = task.development()
        assert {video.group for video in chosen.train} == {"1", "2"}
        assert {video.group for video in chosen.held_out} == {"14"}
    assert videos.surveillance(cached).classes == ["calm", "fight"]


def test_clips_of_a_pair_are_reversals_and_evaluated_on_the_same_frames(cached):
    task = videos.order(cached)
    half = len(task.held_out) // 2
    for forwards, backwards in zip(task.held_out[:half], task.held_out[half:], strict=True):
        assert backwards.label == forwards.label + 1
        clips = videos.Clips([forwards, backwards], Recipe(), GREY, task.classes)
        one, other = clips.middle([0, 1])
        assert one.shape == (8, 3, 32, 32) and torch.equal(one, other.flip(0)) and not torch.equal(one, other)
    assert task.classes[:2] == ["accident", "accident backwards"] and len(task.classes) == 8


@pytest.mark.parametrize("row", rows.BLIND, ids=lambda row: row.name)
def test_rows_that_are_called_blind_are_blind_to_order(row):
    model = row.build(small_vit(), 8).eval()
    clips = torch.randn(2, 8, 3, 32, 32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
        assert torch.allclose(model(clips), model(clips.flip(1)), atol=1e-5)
        assert not torch.allclose(model(clips)[0], model(clips)[1], atol=1e-5)


def test_a_trial_reports_each_video(cached, monkeypatch, tmp_path):
    monkeypatch.setattr(trial, "backbone", lambda data, size: (small_vit(), GREY))
    setting = trial.Setting(rows.AIM.name, "order", 1e-3, every=1)
    found = trial.run(setting, trial.Plan(size=32, steps=2, batch=2), tmp_path, cached, "cpu")
    assert len(found["right"]) == len(found["within"]) == len(found["groups"]) == 16
    assert found["top1"] == pytest.approx(sum(found["right"]) / 16)
    assert [point["step"] for point in found["curve"]] == [1, 2]
    blind = trial.run(
        trial.Setting("frozen, linear head", "order", 1e-3), trial.Plan(32, 1, 2), tmp_path, cached, "cpu"
    )
    assert blind["within_pair"] <= 0.5


def test_rates_are_chosen_by_accuracy_on_training_people_then_by_loss(tmp_path):
    bench = object.__new__(real.Bench)
    bench.rows = rows.ROWS
    bench.rates, asked = {task: {} for task in real.TUNED}, []

    def of(settings):
        asked.extend(settings)
        best = {"signs": min(rows.RATES), "order": max(rows.RATES)}
        scored = [(setting, 0.9 if setting.lr == best[setting.task] else 0.5) for setting in asked]
        return [{"settings": vars(setting), "top1": top1, "held_out_loss": setting.lr} for setting, top1 in scored]

    bench.of = of
    bench.choose_rates()
    assert all(setting.development for setting in asked)
    assert (bench.rate(rows.AIM, "signs"), bench.rate(rows.AIM, "order")) == (min(rows.RATES), max(rows.RATES))
    assert bench.rate(rows.LINEAR, "signs") == min(rows.LINEAR.rates)  # all the same top-1: the lowest loss
    assert bench.rate(rows.SPATIAL, "order") == bench.rate(rows.AIM, "order")
    assert bench.rate(rows.LINEAR, "surveillance") == bench.rate(rows.LINEAR, "signs")


def test_a_log_without_learning_rates_is_rejected(tmp_path):
    bench = object.__new__(real.Bench)
    bench.rows = rows.ROWS
    bench.rates, bench.of = {task: {} for task in real.TUNED}, lambda settings: []
    bench.trials = Trials(tmp_path / "real.jsonl", {})
    with pytest.raises(SystemExit, match="real.jsonl has no trials .* learning rates on signs. Run without --logged"):
        bench.choose_rates()


def test_rows_that_were_not_run_are_a_dash():
    record = json.loads((tables.RESULTS / "real.json").read_text())
    record["trials"] = [trial for trial in record["trials"] if trial["settings"]["row"] != rows.DIVIDED.name]
    shown = next(line for line in tables.page(record).splitlines() if line.startswith(f"| {rows.DIVIDED.name} |"))
    assert "| - | - | - | 0, 0 |" in shown


def test_the_table_has_all_rows_and_seeds_on_both_tasks():
    bench = object.__new__(real.Bench)
    bench.rows = rows.ROWS
    bench.plan = trial.Plan(seeds=2)
    bench.rates = {task: {row.name: 0.1 for row in rows.ROWS} for task in real.TUNED}
    found = bench.table()
    for task, of_task in (("signs", rows.ROWS), ("order", rows.ROWS), ("surveillance", rows.SMALL)):
        expected = sorted((row.name, seed) for row in of_task for seed in range(2))
        assert sorted((s.row, s.seed) for s in found if s.task == task) == expected
    followed = {setting.row for setting in found if setting.every}
    assert followed == {row.name for row in rows.ROWS if row not in rows.BLIND}


def test_logged_trials_are_found_again(tmp_path):
    trials = Trials(tmp_path / "log.jsonl", {"steps": 1})
    assert trials.find({"row": "a"}) is None
    trials.add({"row": "a"}, {"top1": 0.5})
    assert Trials(tmp_path / "log.jsonl", {"steps": 1}).find({"row": "a"})["top1"] == 0.5
    assert Trials(tmp_path / "log.jsonl", {"steps": 2}).find({"row": "a"}) is None


def test_intervals_are_wider_over_persons_than_over_videos():
    groups = [person for person in "abcdefgh" for _ in range(16)]
    right = [int(person in "abcd") for person in groups]  # as different as persons can be
    least, greatest = tables.interval([{"groups": groups, "right": right}])
    assert greatest - least > 0.5
    least, greatest = tables.interval([{"groups": [str(i) for i in range(128)], "right": right}])
    assert greatest - least < 0.2


def test_st_adapter_starts_as_the_frozen_backbone_and_computes_its_equation():
    backbone, clips = small_vit().eval(), torch.randn(2, 8, 3, 32, 32)
    with torch.no_grad():
        features = backbone(clips.flatten(0, 1))
        model = st_adapter(backbone, 3, 8, 16).eval()
        assert torch.allclose(model(clips), model.model.head(features).view(2, 8, -1).mean(1), atol=1e-6)
        block = next(module for module in model.modules() if isinstance(module, STAdapter)).double()
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
        x = torch.randn(8, 17, 32, dtype=torch.float64)
        z = F.pad(block.down(x[:, 1:]), (0, 0, 0, 0, 1, 1))  # one clip: time is the first axis
        weight = block.over_time.weight[:, 0]
        mixed = sum(weight[:, k] * z[k : k + 8] for k in range(3)) + block.over_time.bias
        expected = block.block(torch.cat([x[:, :1], x[:, 1:] + block.up(mixed)], 1))
        assert torch.allclose(block(x), expected, atol=1e-10)
    widths = 2 * (32 * 16 + 16 + 16 * 32 + 32 + 3 * 16 + 16)
    assert trained_parameters(model) == widths + 2 * 32 + 33 * 3


def test_attention_that_averages_frames_is_found_to_blur():
    model, clips = small_vit(), torch.randn(3, 8, 3, 32, 32)
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[:64] = 0  # no queries and keys: uniform weights
        model.blocks[0].attn.qkv.bias[:64] = 0
    first, second = blur(model, clips)
    assert first["entropy"] == pytest.approx(1) and first["output"] < 1e-6 < 0.1 < first["input"]
    assert second["entropy"] < 1 and second["output"] > 0


def test_attentive_pooling_trains_the_probe_only():
    model = AttentivePooling(small_vit(), 3)
    model(torch.randn(1, 2, 3, 32, 32)).sum().backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"query", "attention", "norm", "head"}


def test_all_rows_are_shown_with_the_goals(tmp_path):
    record = json.loads((tables.RESULTS / "real.json").read_text())
    short = json.loads((tables.RESULTS / "real_cpu.json").read_text())
    page, tried = tables.page(record), tables.short_page(short)
    added = (rows.CONVOLUTION, rows.CONVOLUTION_ALL, rows.BOTH)  # after the record was made on a GPU
    assert all(f"| {row.name} |" in page for row in rows.ROWS if row not in added)
    assert all(f"| {row.name} |" in tried for row in rows.CHOICES)
    for row in rows.BLIND:
        assert {found["within_pair"] for found in tables.of(record, row, "order")} <= {0.5}
    tables.draw(record, tmp_path / "real.svg")
    assert (tmp_path / "real.svg").stat().st_size < 200_000


def test_attention_and_convolution_are_compared_with_all_seeds():
    record = json.loads((tables.RESULTS / "real_over_time.json").read_text())
    assert [row for row, _ in tables.costed(record)] == sorted(rows.OVER_TIME, key=rows.ROWS.index)
    for row in rows.OVER_TIME:
        for task in ("signs", "order"):
            assert len(tables.of(record, row, task)) == record["plan"]["seeds"] == 3


def test_videos_of_order_are_written_forward_and_backward(tmp_path, monkeypatch):
    monkeypatch.setattr(defaults, "REVERSIBLE", ("hot",))
    ramp = torch.linspace(0, 1, 6).view(6, 1, 1, 1).expand(6, 32, 32, 3)
    (tmp_path / "signs" / "val" / "hot").mkdir(parents=True)
    write_video(tmp_path / "signs" / "val" / "hot" / "hot_19_1.mp4", ramp)
    folder = defaults.write_order(tmp_path / "signs", tmp_path / "order")
    means = []
    for name in ("hot", "hot backwards"):
        with open_video(folder / "val" / name / "hot_19_1.mp4") as video:
            means.append(video.read(range(6)).float().mean((1, 2, 3)))
    assert means[0].diff().min() > 20 and torch.allclose(means[0], means[1].flip(0), atol=3)
