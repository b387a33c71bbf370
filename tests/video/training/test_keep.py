"""Evaluation while training: which weights are kept, early stopping, progress and curve; also after interruptions."""

from __future__ import annotations

import io
import json
import os
import signal
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from videos import write_classes

from peft_aim.__main__ import main
from peft_aim.saving.weights import adapter_weights, plain
from peft_aim.video.data.data import Data
from peft_aim.video.data.listing import Sample
from peft_aim.video.evaluate import Evaluation
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.run import train
from peft_aim.video.training.trainer import ClipTrainer
from peft_aim.video.training.validation import Validation

TOP1 = (0.25, 0.75, 0.75, 0.5)  # after each epoch
RECIPE = Recipe(frames=2, epochs=4, batch_size=2, workers=0, lr=1e-2, flip=True)  # 3 steps per epoch


class Scripted:
    """Replaces the top-1 accuracy after each epoch, and records the weights that it stands for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *top1: float) -> None:
        self.top1, self.seen, validate = top1, {}, ClipTrainer.validate

        def scripted(trainer, views=None):
            result = validate(trainer, views)
            if views is None:
                return result
            epoch = round(trainer.state.epoch)
            self.seen[epoch] = {name: t.clone() for name, t in adapter_weights(trainer.model, "default").items()}
            return Evaluation({"1x1": replace(result.best, top1=self.top1[epoch - 1])})

        monkeypatch.setattr(ClipTrainer, "validate", scripted)


class Killed(Exception):  # noqa: N818
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, how) -> None:
    """Let something happen in a step."""
    train_step = ClipTrainer.training_step

    def stopping(self, *args, **kwargs):
        if self.state.global_step + 1 == step:
            how()
        return train_step(self, *args, **kwargs)

    monkeypatch.setattr(ClipTrainer, "training_step", stopping)


def kill():
    raise Killed


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("videos"), val=1)


@pytest.fixture(scope="module")
def best(videos, image_model, tmp_path_factory):
    """A run whose second epoch is the best."""
    printed, output = io.StringIO(), tmp_path_factory.mktemp("best")
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(printed):
        scripted = Scripted(monkeypatch, *TOP1)
        model, report = train(Data.find(videos), image_model, output, RECIPE)
    return scripted.seen, model, report, output, printed.getvalue()


def test_the_weights_of_the_best_epoch_are_kept_bit_for_bit(best):
    seen, model, report, output, _ = best
    assert same(adapter_weights(model, "default"), seen[2]) and not same(seen[2], seen[3])
    saved = load_file(output / "adapter_model.safetensors")
    assert same({plain(name): tensor for name, tensor in saved.items()}, seen[2])
    assert report.kept == 2 and "Kept the weights of epoch 2 of 4: the highest val top-1 of 4 evaluations" in str(
        report
    )
    assert report.trained_parameters == sum(t.numel() for t in seen[2].values())
    assert not (output / "checkpoints").exists()


def test_evaluation_does_not_change_training(best, videos, image_model, tmp_path):
    data = Data.find(videos)
    model, report = train(Data(data.classes, data.train), image_model, tmp_path / "out", RECIPE)
    assert same(adapter_weights(model, "default"), best[0][4])
    assert report.kept == 4 and "Kept the weights of epoch 4 of 4, the last" in str(report)
    assert [point["top1"] for point in report.curve] == [None] * 4
    assert [point["loss"] for point in report.curve] == [point["loss"] for point in best[2].curve]
    assert "There is no val split, so the adapter is not evaluated: the last weights are kept" in str(report)


def test_training_says_first_what_it_is_about_to_do(videos, image_model, tmp_path, capsys):
    data, recipe = Data.find(videos), replace(RECIPE, epochs=1, lr=None)
    _, report = train(data, image_model, tmp_path / "out", recipe)
    start = f"Training on {len(data.train)} videos of {len(data.classes)} classes, {len(data.val)} val videos: "
    rate = report.recipe.lr
    assert f"{start}1 epoch of 3 steps, learning rate {rate:.3g}\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "report.json").read_text())["recipe"]["lr"] == rate > 0


def test_each_epoch_has_a_line_and_a_point_of_the_curve(best):
    _, _, report, output, printed = best
    lines = [line for line in printed.splitlines() if line.startswith("epoch")]
    assert len(lines) == 4 and "{" not in printed
    for line, point in zip(lines, report.curve, strict=True):
        assert line.startswith(
            f"epoch {point['epoch']}/4   loss {point['loss']:.4g}   val top-1 {point['top1']:.1%}   "
        )
        assert " clips/s   " in line and line.endswith(" left")
    assert "00:00 left" in lines[-1]
    saved = json.loads((output / "report.json").read_text())
    assert saved["kept"] == 2 and saved["curve"] == report.curve
    assert [point["top1"] for point in saved["curve"]] == [*TOP1]
    with Image.open(output / "curve.png") as image:
        assert image.width > 300


@pytest.mark.parametrize("step", [8, 9, 12], ids=["in an epoch", "at its end", "at the end"])
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_resumed_runs_keep_the_same_weights(best, videos, image_model, tmp_path, monkeypatch, step, how):
    """Also if the best epoch was before the interruption."""
    with monkeypatch.context() as patch:
        Scripted(patch, *TOP1)
        stop_at(patch, step, kill if how == "killed" else lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Killed if how == "killed" else KeyboardInterrupt):
            train(Data.find(videos), image_model, tmp_path / "out", RECIPE)
    kept = {path.name for path in (tmp_path / "out" / "checkpoints").glob("checkpoint-*")}
    assert "checkpoint-6" in kept and len(kept) <= 2
    scripted = Scripted(monkeypatch, *TOP1)
    model, report = train(Data.find(videos), image_model, tmp_path / "out", RECIPE, resume=True)
    assert same(adapter_weights(model, "default"), best[0][2]) and report.kept == 2
    assert all(same(scripted.seen[epoch], best[0][epoch]) for epoch in scripted.seen)
    assert [point["top1"] for point in report.curve] == [*TOP1]
    for point, expected in zip(report.curve, best[2].curve, strict=True):
        assert point["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_training_stops_early_and_does_not_go_on_when_resumed(videos, image_model, tmp_path, monkeypatch):
    scripted, recipe = Scripted(monkeypatch, 0.5, 0.4, 0.3, 1.0), replace(RECIPE, patience=2)
    validate = ClipTrainer.validate
    with monkeypatch.context() as patch:
        patch.setattr(ClipTrainer, "validate", lambda self, views=None: validate(self, views) if views else kill())
        with pytest.raises(Killed):
            train(Data.find(videos), image_model, tmp_path / "out", recipe)
    assert [*scripted.seen] == [1, 2, 3]
    _, report = train(Data.find(videos), image_model, tmp_path / "out", recipe, resume=True)
    assert [*scripted.seen] == [1, 2, 3] and report.kept == 1
    assert [point["top1"] for point in report.curve] == [0.5, 0.4, 0.3]


def test_patience_counts_evaluations_before_an_interruption(videos, image_model, tmp_path, monkeypatch):
    scripted, recipe = Scripted(monkeypatch, 0.5, 0.4, 0.3, 1.0), replace(RECIPE, patience=2)
    with monkeypatch.context() as patch:
        stop_at(patch, 7, kill)
        with pytest.raises(Killed):
            train(Data.find(videos), image_model, tmp_path / "out", recipe)
    assert [*scripted.seen] == [1, 2]
    _, report = train(Data.find(videos), image_model, tmp_path / "out", recipe, resume=True)
    assert [*scripted.seen] == [1, 2, 3] and report.kept == 1


def test_patience_needs_val_videos(videos, image_model, tmp_path, capsys):
    data, recipe = Data.find(videos), replace(RECIPE, patience=3)
    with pytest.raises(ValueError, match="patience=3 needs val videos, but there is no val split. Give a val split"):
        train(Data(data.classes, data.train), image_model, tmp_path / "out", recipe)
    (tmp_path / "empty.mp4").write_bytes(b"")
    broken = Data(data.classes, data.train, [Sample(tmp_path / "empty.mp4", 0)])
    with pytest.raises(ValueError, match="patience=3 needs val videos, but .*empty.mp4 cannot be read"):
        train(broken, image_model, tmp_path / "out", recipe)
    assert main(["train", str(videos), "--model", image_model, "--keep", "last", "--patience", "3"]) == 1
    assert "patience=3 stops training after the best epoch, but keep='last'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train_videos", "val", "interval"), [(6, 2, 1), (6, 3, 1), (6, 4, 2), (6, 9, 3), (100, 1, 1)]
)
def test_large_val_splits_are_evaluated_less_often(train_videos, val, interval):
    data = Data(["a", "b"], [Sample(Path("a"), 0)] * train_videos, [Sample(Path("a"), 0)] * val)
    assert Validation.of(data, None, RECIPE).interval == interval
    assert Validation.of(data, None, replace(RECIPE, epochs=200)).interval == max(interval, 8)


def test_the_last_epoch_is_always_evaluated(videos, image_model, tmp_path, monkeypatch):
    data = Data.find(videos)
    few, recipe = Data(data.classes, data.train, data.val * 2), replace(RECIPE, epochs=3, keep="last")
    scripted = Scripted(monkeypatch, 0.25, 0.75, 0.5)
    model, report = train(few, image_model, tmp_path / "out", recipe)
    assert [point["top1"] for point in report.curve] == [None, 0.75, 0.5] and report.kept == 3
    assert same(adapter_weights(model, "default"), scripted.seen[3])
