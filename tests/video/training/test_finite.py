"""A loss or weights that are NaN or infinite stop training."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from peft_aim.__main__ import main
from peft_aim.video.training.loss import ClipLoss
from peft_aim.video.training.trainer import ClipTrainer

OPTIONS = ["--frames", "2", "--epochs", "3", "--batch-size", "2", "--workers", "0"]

PLAIN = ("--lr", "0.001", "--max-grad-norm", "0")


def arguments(folder, model, output, *more):
    return ["train", str(folder), "--model", model, *OPTIONS, *more, "--output", str(output)]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_the_error_gives_step_loss_checkpoint_and_what_to_try(
    folder, tmp_path, image_model, monkeypatch, capsys, value
):
    """Although one part of one step is at fault, in the second epoch."""
    output, loss, calls = tmp_path / "out", ClipLoss.__call__, []

    def broken(self, *args, **kwargs):
        calls.append(None)
        return loss(self, *args, **kwargs) * (float(value) if len(calls) == 9 else 1)

    monkeypatch.setattr(ClipLoss, "__call__", broken)
    assert main(arguments(folder, image_model, output, "--accumulation", "2", "--precision", "bf16", *PLAIN)) == 1
    error = capsys.readouterr().err
    checkpoint = output / "checkpoints" / "checkpoint-3"
    assert f"The loss of step 5 is {value}, so training stopped there" in error and len(calls) == 10
    assert f"The last checkpoint, {checkpoint}, has finite weights, but can only be resumed with the same" in error
    assert "Train again with --overwrite and a lower --lr (the peak learning rate is 0.001)" in error
    assert "or --max-grad-norm 1 or --precision fp32." in error
    assert all(torch.isfinite(t).all() for t in load_file(checkpoint / "adapter_model.safetensors").values())
    assert not (output / "adapter_model.safetensors").exists() and not (output / "report.json").exists()


def test_a_learning_rate_that_is_far_too_high_leaves_no_adapter(folder, tmp_path, image_model, capsys):
    options = ["--lr", "1e38", "--max-grad-norm", "1", "--warmup-epochs", "0"]
    assert main(arguments(folder, image_model, tmp_path / "out", *options)) == 1
    error = capsys.readouterr().err
    assert "so training stopped there. There is no checkpoint yet. Train again with a lower --lr" in error
    assert "--max-grad-norm" not in error and "--precision" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [["--keep", "best"], ["--keep", "last"], ["--precision", "bf16"], ["--precision", "fp16"], ["no val"]],
    ids=" ".join,
)
def test_nan_is_never_saved_nor_an_accuracy(folder, tmp_path, image_model, capsys, options):
    if options == ["no val"]:
        shutil.rmtree(folder / "val")
        options = []
    more = ["--lr", "1e30", "--max-grad-norm", "0", *options]
    assert main(arguments(folder, image_model, tmp_path / "out", *more)) == 1
    captured = capsys.readouterr()
    assert "a lower --lr (the peak learning rate is 1e+30) or --max-grad-norm 1" in captured.err
    assert "so training stopped there" in captured.err and "top-1" not in captured.out
    assert not (tmp_path / "out").exists()


def test_scores_that_overflow_are_no_accuracy(folder, tmp_path, image_model, monkeypatch, capsys):
    """Weights that are finite, but so large that scores are not, after the last step of an epoch."""
    train_step = ClipTrainer.training_step

    def ruin(self, model, *args, **kwargs):
        loss = train_step(self, model, *args, **kwargs)
        if self.state.global_step == 5:
            for p in model.parameters():
                p.data.mul_(1e38 if p.requires_grad else 1)
        return loss

    monkeypatch.setattr(ClipTrainer, "training_step", ruin)
    output = tmp_path / "out"
    assert main(arguments(folder, image_model, output, "--lr", "1e-3")) == 1
    error = capsys.readouterr().err
    assert re.search(
        "The class scores of . of . videos, .*mp4 for example, are NaN or infinite, so they predict nothing: all",
        error,
    )
    assert f"The last checkpoint, {output / 'checkpoints' / 'checkpoint-3'}, has finite weights" in error
    assert not (output / "adapter_model.safetensors").exists()


def test_weights_that_are_not_finite_are_never_saved(folder, tmp_path, image_model, monkeypatch, capsys):
    """Also if the loss of every step was finite: here the last step ruins the weights."""
    train_step = ClipTrainer.training_step

    def ruin(self, model, *args, **kwargs):
        loss = train_step(self, model, *args, **kwargs)
        if self.state.global_step == 2:
            next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))
        return loss

    monkeypatch.setattr(ClipTrainer, "training_step", ruin)
    assert main(arguments(folder, image_model, tmp_path / "out")) == 1
    assert "1 weights are NaN or infinite after step 3, " in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("**/adapter_model.safetensors"))


def test_gradients_are_clipped_on_request(folder, tmp_path, image_model, monkeypatch):
    seen = []
    clip = ClipTrainer._clip_grad_norm
    monkeypatch.setattr(ClipTrainer, "_clip_grad_norm", lambda self, model: seen.append(clip(self, model)) or seen[-1])
    output = tmp_path / "out"
    assert main(arguments(folder, image_model, output, "--epochs", "1", "--max-grad-norm", "0.5")) == 0
    assert len(seen) == 3 and json.loads((output / "report.json").read_text())["recipe"]["max_grad_norm"] == 0.5
