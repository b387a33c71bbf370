"""Evaluation on labeled videos: metrics, views and reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from videos import write_broken

from peft_aim.__main__ import main
from peft_aim.video.adapters import load_adapters
from peft_aim.video.data.clips import EvaluationClips
from peft_aim.video.data.data import Data
from peft_aim.video.data.listing import Sample, indexed
from peft_aim.video.evaluate import evaluate_model
from peft_aim.video.metrics import Metrics
from peft_aim.video.pipeline import video_pipeline
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.run import train


@pytest.fixture
def adapter(folder, tmp_path, image_model) -> str:
    recipe = Recipe(frames=2, epochs=2, batch_size=4, lr=1e-2, workers=0, views=(2, 3))
    train(Data.find(folder), image_model, tmp_path / "my-task", recipe)
    return str(tmp_path / "my-task")


def test_metrics_count_correct_predictions():
    labels = np.array([0, 0, 0, 1, 1, 2])
    guesses = np.array([0, 0, 1, 1, 0, 2])
    metrics = Metrics.of(np.eye(7)[guesses] * 0.9 + 0.01, labels, [f"c{i}" for i in range(7)])
    assert (metrics.videos, metrics.top1) == (6, 4 / 6)
    assert metrics.mean_class == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert metrics.interval == pytest.approx((0.300, 0.903), abs=1e-3)  # Wilson score interval for 4 of 6
    assert metrics.confusion[0][:3] == [2, 1, 0] and metrics.confusion[1][:3] == [1, 1, 0]
    assert metrics.per_class[0] == {"class": "c0", "videos": 3, "recall": pytest.approx(2 / 3), "precision": 2 / 3}
    assert metrics.per_class[6] == {"class": "c6", "videos": 0, "recall": 0.0, "precision": 0.0}


def test_top_5_needs_more_than_five_classes():
    probabilities = np.tile(np.arange(8.0), (4, 1)) / 28
    metrics = Metrics.of(probabilities, np.array([7, 3, 2, 0]), [str(i) for i in range(8)])
    assert (metrics.top1, metrics.top5) == (0.25, 0.5)
    assert Metrics.of(np.eye(2), np.array([0, 1]), ["a", "b"]).top5 is None


def test_many_classes_are_shown_by_their_worst_confusions():
    labels, guesses = np.array([0] * 5 + [1] * 2 + [2]), np.array([3] * 5 + [4] * 2 + [2])
    table = Metrics.of(np.eye(20)[guesses], labels, [f"class {i}" for i in range(20)]).table()
    assert table.splitlines()[1].split() == ["class", "0", "5", "0.0%", "0.0%"]
    assert table.splitlines()[-2:] == ["     5  class 0 predicted as class 3", "     2  class 1 predicted as class 4"]


def test_results_do_not_depend_on_the_batch_size(folder, adapter):
    loaded, videos = load_adapters([adapter]), Data.find(folder).val
    description, model = loaded.descriptions[0], loaded.model
    results = [evaluate_model(model, description, videos, (2, 3), batch_size=size, workers=0) for size in (1, 4, 100)]
    assert results[0].views.keys() == {"1x1", "2x3"}
    assert all(result == results[0] for result in results)
    one = evaluate_model(model, description, videos, (1, 1), workers=0)
    assert one.views == {"1x1": results[0].views["1x1"]}


def test_probabilities_of_views_are_averaged_after_softmax(folder, adapter, monkeypatch):
    loaded, videos = load_adapters([adapter]), Data.find(folder).val
    seen = []
    monkeypatch.setattr(Metrics, "of", lambda probabilities, labels, classes: seen.append(probabilities))
    evaluate_model(loaded.model, loaded.descriptions[0], videos[:1], (2, 3), workers=0)
    description = loaded.descriptions[0]
    clips = EvaluationClips(videos[:1], description.views_with(2, 3), 1, 12)[0]["clips"]
    with torch.no_grad():
        every = loaded.model(clips).logits.softmax(-1).numpy()
    assert np.allclose(seen[0][0], every[6], atol=1e-6)
    assert np.allclose(seen[1][0], every[:6].mean(0), atol=1e-6)


def test_evaluate_prints_and_saves_all_results(folder, adapter, tmp_path, capsys):
    broken = write_broken(folder / "val" / "light")
    output = tmp_path / "results"
    arguments = ["evaluate", adapter, str(folder), "--output", str(output), "--workers", "0"]
    assert main([*arguments, "--min-frames", "2", "--batch-size", "5"]) == 0
    printed = capsys.readouterr().out
    assert "4 videos evaluated, 4 skipped" in printed and "1 x 1" in printed and "2 x 3" in printed
    assert "true / predicted  dark  light  recall" in printed
    assert all(str(path) in printed for path in broken.values())
    facts = json.loads((output / "evaluation.json").read_text())
    assert facts["videos"] == 4 and len(facts["skipped"]) == 4
    assert np.sum(facts["views"]["2x3"]["confusion"]) == 4
    assert {row["class"] for row in facts["views"]["1x1"]["per_class"]} == {"dark", "light"}
    assert np.asarray(Image.open(output / "confusion.png")).std() > 10
    assert main([*arguments, "--views", "1x1"]) == 0
    assert "2 x 3" not in capsys.readouterr().out


def test_damaged_and_hdr_videos_are_named_once(folder, adapter, tmp_path, capsys, monkeypatch):
    read = EvaluationClips.__getitem__
    notices = {"path": "b.mov", "damaged": "b.mov is damaged: 30 of 60 frames had to be replaced.", "hdr": "b.mov"}
    monkeypatch.setattr(EvaluationClips, "__getitem__", lambda self, i: read(self, i) | (notices if i < 2 else {}))
    arguments = ["evaluate", adapter, str(folder), "--output", str(tmp_path / "out"), "--workers", "0"]
    assert main(arguments) == 0
    printed, facts = capsys.readouterr().out, json.loads((tmp_path / "out" / "evaluation.json").read_text())
    note = "1 video is HDR (PQ or HLG), b.mov for example: HDR is read without tone mapping, so the colors look "
    assert printed.count(f"  damaged: {notices['damaged']}") == printed.count(f"Note: {note}") == 1
    assert facts["damaged"] == [notices["damaged"]] and facts["notes"][0].startswith(note) and facts["skipped"] == []


def ruined(adapter: str, tmp_path: Path, name: str) -> str:
    """Copy an adapter, with NaN in one of its weights."""
    folder = Path(shutil.copytree(adapter, tmp_path / name))
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors")
    return str(folder)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_an_adapter_of_nan_predicts_nothing(folder, adapter, tmp_path, capsys, command):
    bad = ruined(adapter, tmp_path, "bad")
    last = str(folder if command == "evaluate" else folder / "val" / "dark" / "0.mp4")
    assert main([command, bad, last, "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert f"peft-aim {command}: 1 weights of the adapter {bad} are NaN or infinite, " in error
    assert "so it predicts nothing. Train it again with a lower --lr, or load an earlier copy." in error
    with pytest.raises(ValueError, match="weights of the adapter .*bad are NaN"):
        load_adapters([adapter, bad])
    with pytest.raises(ValueError, match="weights of the adapter .*bad are NaN"):
        video_pipeline(bad)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3e38, "all weights are finite, but numbers overflow in float32. Load the backbone in float32, or train"),
        (float("nan"), "weights of the model are NaN or infinite, .* for example. Load other weights, or train"),
    ],
)
def test_scores_that_are_not_finite_are_no_accuracy(folder, adapter, value, reason):
    loaded = load_adapters([adapter])
    for parameter in loaded.model.parameters():
        parameter.data.fill_(value)
    with pytest.raises(
        ValueError, match=f"The class scores of 4 of 4 videos, .*dark/0.mp4 for example, are NaN .*: .*{reason}"
    ):
        evaluate_model(loaded.model, loaded.descriptions[0], Data.find(folder).val, (1, 1), workers=0)


def test_names_with_line_breaks_do_not_break_the_table():
    for classes in (["dark\nred", "li\x1b[31mght"], [f"dark\n{i}" for i in range(20)]):
        table = Metrics.of(np.eye(len(classes)), np.arange(len(classes)), classes).table()
        assert r"dark\n" in table and "\x1b" not in table and len(table.splitlines()) < len(classes) + 5


def test_labels_refer_to_the_classes_of_the_adapter(folder, adapter, tmp_path, capsys):
    (folder / "val" / "dark").rename(folder / "val" / "dim")
    assert main(["evaluate", adapter, str(folder), "--output", str(tmp_path / "o")]) == 1
    assert "has the label 'dim', which is not one of the classes ['dark', 'light']" in capsys.readouterr().err
    (folder / "list.txt").write_text("train/light/0.mp4 1\ntrain/dark/0.mp4 0\n")
    assert (
        main(["evaluate", adapter, str(folder / "list.txt"), "--output", str(tmp_path / "o"), "--workers", "0"]) == 0
    )
    assert "2 videos evaluated" in capsys.readouterr().out


def test_only_broken_videos_is_an_error(folder, adapter):
    loaded = load_adapters([adapter])
    videos = [Sample(path, 0) for path in write_broken(folder / "more").values()]
    with pytest.raises(ValueError, match=r"None of the 4 evaluation videos can be read. .*cannot be read as a video"):
        evaluate_model(loaded.model, loaded.descriptions[0], videos, workers=0, min_frames=2)
    assert indexed([], loaded.descriptions[0].classes) == []
