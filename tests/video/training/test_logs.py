"""Logs for TensorBoard and others."""

from __future__ import annotations

import sys
import types

from transformers import integrations
from transformers.integrations import integration_utils

from peft_aim.__main__ import main
from peft_aim.video.training import logs

OPTIONS = ["--frames", "2", "--epochs", "1", "--batch-size", "4", "--workers", "0"]


def test_unknown_programs_and_those_not_installed_are_errors_before_anything_is_loaded(
    folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(integrations, "get_available_reporting_integrations", lambda: ["mlflow"])
    arguments = ["train", str(folder), "--model", "vit_tinny", *OPTIONS, "--output", str(tmp_path / "out"), "--log"]
    assert main([*arguments, "mlflow", "--log", "wandb"]) == 1
    error = capsys.readouterr().err
    assert "log='wandb' is not installed. Install it with: pip install wandb. transformers also supports " in error
    assert "tensorboard" in error
    assert main([*arguments, "tensorbored"]) == 1
    assert "log='tensorbored' is not supported by transformers. Give one of " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_loss_learning_rate_and_top1_go_to_tensorboard_in_the_output(folder, tmp_path, image_model, monkeypatch):
    written, folders = {}, []

    class Writer:
        def __init__(self, log_dir):
            folders.append(log_dir)

        def add_scalar(self, name, value, step):
            written[name] = (value, step)

        add_text = flush = close = lambda *_, **__: None

    module = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    arguments = ["train", str(folder), "--model", image_model, *OPTIONS, "--output", str(tmp_path / "out")]
    assert main([*arguments, "--log", "tensorboard"]) == 0
    assert folders == [str(tmp_path / "out" / logs.TENSORBOARD)]
    assert {"train/loss", "train/learning_rate", "eval/top1", "eval/mean_class"} <= written.keys()
    assert written["eval/top1"][1] == 2 and 0 <= written["eval/top1"][0] <= 1
