"""The command line interface, conversion of checkpoints, and the demo."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import zoo
from official import SIZES, official, timm_clip
from PIL import Image
from safetensors import SafetensorError
from videos import write

from peft_aim.__main__ import main
from peft_aim.convert.conversion import from_official
from peft_aim.video import backbones
from peft_aim.video.backbones import Source
from peft_aim.video.demo import digits
from peft_aim.video.demo import run as demo_module
from peft_aim.video.predict import predict
from peft_aim.video.recipe import Recipe

COMMANDS = ("train", "evaluate", "predict", "watch", "embed", "export", "explain", "convert", "inspect", "demo")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert exit.value.code == 0 and printed.startswith(f"usage: peft-aim {command}")
    assert re.search(rf"example: peft-aim\s+{command}", printed)


@pytest.mark.parametrize(
    "arguments", [["train"], ["evaluate", "a", "b", "--views", "3"], ["train", "v", "--recipe", "hmdb"], ["--fly"]]
)
def test_wrong_arguments_are_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage: peft-aim" in capsys.readouterr().err


def test_without_a_command_all_commands_are_listed():
    result = subprocess.run([sys.executable, "-m", "peft_aim"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: peft-aim [-h] COMMAND")
    for command in COMMANDS:
        assert re.search(rf"^ +{command} +\w", result.stderr, re.M)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("trian", "peft-aim: there is no command 'trian'. Did you mean 'train'?\n"),
        ("eval", "peft-aim: there is no command 'eval'. Did you mean 'evaluate'?\n"),
        ("fly", f"peft-aim: there is no command 'fly'. The commands are {', '.join(COMMANDS)}.\n"),
    ],
)
def test_unknown_commands_are_usage_errors_that_suggest_the_nearest(command, message, capsys):
    assert main([command, "--frames", "8"]) == 2
    assert capsys.readouterr() == ("", message)


def test_backbone_options_need_a_model(capsys):
    assert main(["predict", "adapter", "video.mp4", "--weights", "w.pth"]) == 1
    assert "--weights, --model-class, --revision and --image-size need --model" in capsys.readouterr().err


# Conversion.


@pytest.fixture
def small_clip(tmp_path, monkeypatch):
    """An official checkpoint, and its backbone under timm's name."""
    state = official("clip")
    torch.save({"state_dict": state}, tmp_path / "official.pth")
    torch.save(timm_clip(state).state_dict(), tmp_path / "clip.pth")
    create = timm.create_model
    small = {**SIZES, "num_heads": 2, "pretrained_cfg_overlay": {"input_size": (3, zoo.SIZE, zoo.SIZE)}}
    monkeypatch.setattr(backbones.timm, "create_model", lambda name, **options: create(name, **small, **options))
    return tmp_path


NAME = "vit_base_patch16_clip_quickgelu_224"


def test_a_converted_checkpoint_predicts(small_clip, capsys, monkeypatch):
    monkeypatch.chdir(small_clip)
    classes = [f"class {i}" for i in range(len(official("clip")["cls_head.fc_cls.bias"]))]
    (small_clip / "classes.txt").write_text("\n".join(classes))
    of_model = ["--model", NAME, "--weights", "clip.pth"]
    assert (
        main(["convert", "official.pth", "k400", *of_model, "--recipe", "kinetics400", "--classes", "classes.txt"])
        == 0
    )
    frames = official("clip")["backbone.temporal_embedding"].shape[1]
    assert f"{frames} frames, {len(classes)} classes, 1 temporal adapter(s), scale 0.5" in capsys.readouterr().out
    write(small_clip / "video.mp4", count=40)
    (prediction,) = predict("k400", "video.mp4", top_k=len(classes))
    assert {name for name, _ in prediction.top} == {*classes}
    loaded = backbones.load_backbone(Source(NAME, "clip.pth"))[0]
    model = from_official("official.pth", loaded)
    from peft_aim.video.adapters import load_adapters
    from peft_aim.video.data.clips import EvaluationClips, Sample

    description = load_adapters(["k400"]).descriptions[0]
    assert (description.stride, description.views, description.recipe) == (128 // frames, (3, 1), None)
    clips = EvaluationClips([Sample("video.mp4", 0)], description.views_with(3, 1), 1, 12)
    with torch.no_grad():
        expected = model(clips[0]["clips"]).softmax(-1).mean(0)
    assert [dict(prediction.top)[name] for name in classes] == pytest.approx(expected.tolist(), abs=1e-5)


def test_convert_takes_scale_recipe_and_classes(small_clip, capsys, monkeypatch):
    monkeypatch.chdir(small_clip)
    of_model = ["--model", NAME, "--weights", "clip.pth"]
    assert main(["convert", "official.pth", "a", *of_model, "--scale", "1.0"]) == 0
    assert "scale 1.0" in capsys.readouterr().out
    assert main(["convert", "official.pth", "b", *of_model, "--recipe", "ssv2"]) == 0
    assert "scale 1.0" in capsys.readouterr().out
    assert main(["convert", "official.pth", "a", *of_model]) == 1
    assert "a is not empty" in capsys.readouterr().err
    (small_clip / "classes.txt").write_text("only one\n")
    assert main(["convert", "official.pth", "c", *of_model, "--classes", "classes.txt"]) == 1
    assert "classes.txt lists 1 class name(s), but the checkpoint has" in capsys.readouterr().err


def test_convert_on_a_full_disk_names_the_folder(small_clip, capsys, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("peft.peft_model.safe_save_file", full)
    out, of_model = str(small_clip / "out"), ["--model", NAME, "--weights", str(small_clip / "clip.pth")]
    assert main(["convert", str(small_clip / "official.pth"), out, *of_model]) == 1
    error = capsys.readouterr().err
    assert f"peft-aim convert: {out} cannot be written to: its disk is full or read-only (Error while seri" in error
    assert error.endswith("Make room, and convert it again.\n")


# The demo.


@pytest.mark.parametrize("task", digits.TASKS)
def test_single_frames_do_not_show_the_class(task):
    """Averaged over time, frames of all classes look alike; at a fixed time they differ."""
    drawn, _ = digits.videos(task, per_class=400, held_out=False)
    of_class = drawn.unflatten(0, (4, 400))
    at_any_time = of_class.mean((1, 2))
    at_first = of_class[:, :, 0].mean(1)
    assert (at_any_time - at_any_time.mean(0)).abs().max() < 0.06
    assert (at_first - at_first.mean(0)).abs().max() > 0.12


def test_the_demo_runs_from_end_to_end(tmp_path, monkeypatch, capsys):
    """The machinery, not the numbers: a few videos and steps."""
    (tmp_path / "peft_aim").mkdir()  # beside a clone, which "python -m" would take for the package
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_module, "VIDEOS_PER_CLASS", {"train": 4, "val": 2})
    monkeypatch.setattr(demo_module, "PRETRAINING_STEPS", 2)
    monkeypatch.setattr(demo_module, "stills", lambda count: digits.stills(512))
    monkeypatch.setattr(demo_module, "EPOCHS", dict.fromkeys(demo_module.EPOCHS, 1))
    monkeypatch.setattr(demo_module, "RECIPE", Recipe(**{**vars(demo_module.RECIPE), "workers": 0}))
    assert main(["demo", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for task in digits.TASKS:
        assert f"{task:8} AIM " in printed
        assert (tmp_path / f"{task}-aim" / "adapter_model.safetensors").is_file()
    assert np.asarray(Image.open(tmp_path / "predictions.png")).std() > 10
