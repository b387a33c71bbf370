"""The benchmark on early recognition, on random frames and small backbones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from benchmarks.accuracy import small_vit
from benchmarks.early import __main__ as early
from benchmarks.early import adapters, scoring, tables, tasks
from benchmarks.real.rows import AIM, aim
from benchmarks.real.videos import REVERSIBLE, Video
from peft_aim.video.data import Preprocessing

TASKS = ("signs", "order", tasks.SYNTHETIC)
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=16, **SMALL)


def adapted(causal: bool, classes: int) -> nn.Module:
    """An adapter with random weights, so that frames affect each other."""
    model = aim(causal=causal)(tiny_vit(), classes)
    with torch.no_grad():
        for weight in adapters.learned(model).values():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


@pytest.fixture(scope="module")
def task() -> tasks.Task:
    """Four videos of random frames; those of the first half of a video are all the same."""
    clips = torch.randn(4, 8, 3, 32, 32)

    def seen(part: int) -> torch.Tensor:
        return clips if part == 100 else clips[:, :1].expand(-1, 8, -1, -1, -1)

    labels = torch.tensor([0, 1, 2, 3])
    return tasks.Task("random", 4, True, 1, 2, [0.1], labels, ["a", "a", "b", "b"], tiny_vit, None, seen)


def test_a_stream_gives_the_scores_of_the_frames_seen_and_another_video_changes_them(task):
    model, clips = adapted(causal=True, classes=4), task.seen(100)
    found = scoring.streamed(scoring.Stream(model), clips)
    assert torch.allclose(found, scoring.truncated(model, clips), atol=1e-4) and found.shape == (8, 4, 4)
    later = scoring.running(scoring.Stream(model), clips[scoring.others(task.labels)], clips)
    assert later.shape == (4, 4) and not torch.allclose(later, found[-1], atol=1e-2)


def test_bidirectional_adapters_are_run_in_three_ways(task):
    model = adapted(causal=False, classes=4)
    before = model(task.seen(100))
    found = scoring.of_bidirectional(model, task)["curves"]
    whole = {way: curve[-1]["held_out_loss"] for way, curve in found.items()}
    assert whole[scoring.TRUNCATED] == whole[scoring.SAMPLED] != whole[scoring.APPROXIMATE]
    halves = [point["held_out_loss"] for point in found[scoring.SAMPLED][:-1]]
    assert len(set(halves)) == 1 and halves[0] != whole[scoring.SAMPLED]
    assert torch.equal(model(task.seen(100)), before)  # a stream leaves the model as it was


def test_the_video_before_is_of_another_class():
    labels = torch.arange(60) % 4
    before = scoring.others(labels)
    assert (labels[before] != labels).all() and len(set(before.tolist())) > 20
    assert torch.equal(before, scoring.others(labels))


def test_what_has_passed_of_a_reversed_video_is_its_end():
    frames = torch.arange(10).view(10, 1, 1, 1)
    parts = [tasks.beginning(Video(frames, 0, "a", backward), 30) for backward in (False, True)]
    assert [part.clip([0, 1, 2]).flatten().tolist() for part in parts] == [[0, 1, 2], [9, 8, 7]]
    assert len(tasks.beginning(Video(frames, 0, "a"), 1).frames) == 1


def test_the_results_in_the_text_are_those_of_the_record():
    record = json.loads((tables.RESULTS / "early.json").read_text())
    top1 = lambda task, way, part: tables.mean(tables.points(record, task, way, part), "top1")
    for task in ("signs", "order"):
        for way in (scoring.TRUNCATED, scoring.APPROXIMATE):
            assert abs(top1(task, scoring.STREAM, 100) - top1(task, way, 100)) < 0.05
        assert abs(top1(task, scoring.STREAM, 30) - top1(task, scoring.SAMPLED, 30)) < 0.07
    assert abs(top1(tasks.SYNTHETIC, scoring.STREAM, 100) - top1(tasks.SYNTHETIC, scoring.TRUNCATED, 100)) < 0.02
    assert top1(tasks.SYNTHETIC, scoring.STREAM, 30) > 3 * top1(tasks.SYNTHETIC, scoring.SAMPLED, 30)
    assert top1(tasks.SYNTHETIC, scoring.APPROXIMATE, 100) < 0.5 * top1(tasks.SYNTHETIC, scoring.TRUNCATED, 100)
    running = lambda task, row, key: [trial["running"][key] for trial in tables.of(record, task, row)]
    for row in (adapters.CAUSAL, adapters.PRECEDED):
        assert all(abs(value - 0.5) < 0.05 for value in running("order", row, "within_pair"))
    rows = (adapters.PRECEDED, adapters.CAUSAL)
    preceded, causal = (running(tasks.SYNTHETIC, row, "top1")[0] for row in rows)
    assert preceded > causal + 0.1


def test_differences_are_of_the_same_videos():
    groups = [person for person in "abcdefgh" for _ in range(16)]
    one = [{"right": "".join("1" if person in "abcd" else "0" for person in groups)}]
    assert tables.difference(one, one, groups) == "+0.0 (+0.0 to +0.0)"
    none = [{"right": "0" * len(groups)}]
    middle, least, _, greatest = tables.difference(one, none, groups).strip(")").replace("(", "").split()
    assert middle == "+50.0" and float(greatest) - float(least) > 50


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with random videos in the place of decoded ones, and with small backbones."""
    grey = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr(tasks, "backbone", lambda data, size: (tiny_vit(), grey))
    monkeypatch.setattr(tasks, "pretrained", lambda steps: (small_vit.small_vit(), 0.0))
    frames = {
        f"signs/{split}/{word}/{word}_{person:02}_1.mp4": torch.randint(256, (16, 3, 40, 40), dtype=torch.uint8)
        for split, people in {"train": (1, 2), "val": (19, 20)}.items()
        for word in REVERSIBLE
        for person in people
    }
    (tmp_path / "early").mkdir()
    torch.save(frames, tmp_path / "early" / "frames.pt")
    return tmp_path


def test_an_interrupted_run_resumes_and_all_is_shown(folder, monkeypatch):
    command = ["nowhere", "--quick", "--output", str(folder)]
    early.main(command)
    log = folder / "early.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert [(trial["task"], trial["row"]) for trial in (json.loads(line)["settings"] for line in lines)] == [
        *((task, row) for task in TASKS for row in adapters.ROWS),
        *((task, adapters.PRECEDED) for task in TASKS[:0:-1]),
    ]
    page = (folder / "early.md").read_text()
    assert all(label in page for _, label in tables.WAYS.values())
    assert (folder / "early.svg").stat().st_size < 200_000
    log.write_text("".join(lines[:-1]))
    early.main([*command, "--logged"])
    assert len(json.loads((folder / "early.json").read_text())["trials"]) == len(lines) - 1
    monkeypatch.setattr(adapters, "fit", None)  # what has been trained is not trained again
    monkeypatch.setattr(early, "publish", lambda folder: None)
    early.main(command)
    last = [json.loads(line) for line in (lines[-1], log.read_text().splitlines()[-1])]
    assert last[0]["curves"] == last[1]["curves"] and last[0]["running"] == last[1]["running"]


def test_adapters_with_other_settings_are_trained_again(folder, monkeypatch):
    task = next(tasks.tasks(early.QUICK, folder, folder / "early" / "frames.pt"))
    monkeypatch.setattr(adapters, "fit", lambda *args: 0.5)
    setting = adapters.Setting(adapters.CAUSAL, task.name, task.rates[0], 0)
    assert adapters.trained(setting, task, {"steps": 1}, folder)[1]["loss"] == 0.5
    monkeypatch.setattr(adapters, "fit", lambda *args: 0.25)
    assert adapters.trained(setting, task, {"steps": 1}, folder)[1]["loss"] == 0.5
    assert adapters.trained(setting, task, {"steps": 2}, folder)[1]["loss"] == 0.25


@pytest.mark.parametrize("row", [*adapters.ROWS, adapters.PRECEDED])
def test_the_last_adapter_is_trained_on_clips_that_follow_others_as_well(task, monkeypatch, row):
    lengths, model = set(), tiny_vit()
    monkeypatch.setattr(model, "forward", lambda clips: lengths.add(clips.shape[1]) or clips.mean((1, 3, 4)))
    training = lambda seed: (4, lambda indices: (task.seen(100)[indices], task.labels[indices] % 3))
    monkeypatch.setattr(adapters, "minimize", lambda model, loss, *sizes: [loss(torch.arange(2)) for _ in range(20)])
    torch.manual_seed(0)
    adapters.fit(model, adapters.Setting(row, "random", 0.1, 0), replace(task, training=training))
    assert lengths == ({8, 16} if row == adapters.PRECEDED else {8})


def test_learning_rates_are_those_of_the_other_benchmarks(folder):
    rates = json.loads((tables.RESULTS / "real_cpu.json").read_text())["rates"]
    found = {task.name: task.rates for task in tasks.tasks(tasks.Plan(), folder, folder / "early" / "frames.pt")}
    assert found["signs"] == [rates["signs"][AIM.name]] * 2 and len(found[tasks.SYNTHETIC]) == 2
