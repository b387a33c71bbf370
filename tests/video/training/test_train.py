"""Training on videos: clips, loss, outputs, interruption and resuming, several processes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file, save_file
from videos import write, write_broken

from peft_aim.__main__ import main
from peft_aim.saving.weights import adapter_weights, plain
from peft_aim.video.backbones import Source, load_backbone
from peft_aim.video.data.clips import IGNORED, EvaluationClips, TrainingClips
from peft_aim.video.data.data import Data, notes_on, typical_timing
from peft_aim.video.data.transforms import ForTraining, Preprocessing
from peft_aim.video.data.views import Views
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.adapting import adapt
from peft_aim.video.training.checkpoints import COMPLETE, last_complete
from peft_aim.video.training.loss import ClipLoss
from peft_aim.video.training.run import measure_speed, new_trainer, train
from peft_aim.video.training.saving import round_weights
from peft_aim.video.training.trainer import ClipTrainer

GREY = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)
SHORT = Recipe(frames=2, epochs=1, batch_size=4, workers=0, drop_path=0.0, head_dropout=0.0, keep="last")
OPTIONS = ["--frames", "2", "--epochs", "1", "--batch-size", "4", "--workers", "0"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


# Clips.


def clips_of(folder: Path, recipe: Recipe = SHORT) -> TrainingClips:
    data = Data.find(folder)
    return TrainingClips(data.train, recipe, ForTraining(GREY, recipe, data.classes))


def test_clips_depend_on_seed_epoch_and_video_only(folder):
    recipe = Recipe(frames=4, flip=True)
    clips = clips_of(folder, recipe)
    first = clips[2]["clips"]
    state = torch.get_rng_state()
    assert torch.equal(clips_of(folder, recipe)[2]["clips"], first)
    assert torch.equal(torch.get_rng_state(), state)
    clips.epoch.fill_(1)
    assert not torch.equal(clips[2]["clips"], first)
    assert not torch.equal(clips_of(folder, Recipe(frames=4, flip=True, seed=1))[2]["clips"], first)


def test_persistent_workers_see_the_next_epoch(folder):
    clips = clips_of(folder, Recipe(frames=4, flip=True))
    loader = torch.utils.data.DataLoader(clips, batch_size=6, num_workers=1, persistent_workers=True)
    first, again = (next(iter(loader))["clips"] for _ in range(2))
    clips.epoch.fill_(1)
    assert torch.equal(first, again)
    assert not torch.equal(next(iter(loader))["clips"], first)


def test_broken_videos_are_ignored_and_reported(folder):
    clips = clips_of(folder)
    assert clips[0]["labels"] == 0 and clips[5]["labels"] == 1 and clips[0]["skipped"] == ""
    clips.videos[0].path.write_bytes(b"")
    assert clips[0]["labels"] == IGNORED and "0.mp4 cannot be read" in clips[0]["skipped"]
    assert clips[0]["clips"].shape == clips[5]["clips"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("views", "count", "single"), [((1, 1), 1, 0), ((3, 3), 9, 4), ((1, 3), 3, 1), ((4, 3), 12, 12), ((2, 2), 4, 4)]
)
def test_the_single_view_is_one_of_the_others_if_possible(folder, views, count, single):
    videos = Data.find(folder).val
    many = EvaluationClips(videos, Views(2, None, *views, GREY), min_frames=1, fps=12)
    one = EvaluationClips(videos, Views(2, None, 1, 1, GREY), min_frames=1, fps=12)
    assert (many.count, many.single) == (count, single)
    assert len(many[1]["clips"]) == max(count, single + 1)
    assert torch.equal(many[1]["clips"][single], one[1]["clips"][0])


# The loss.


def test_the_loss_is_the_mean_over_readable_clips_in_any_parts():
    scores, labels = torch.randn(8, 3), torch.tensor([0, 1, 2, IGNORED, 1, IGNORED, 0, 2])
    targets = F.one_hot(labels.clamp(min=0), 3).float().where((labels >= 0)[:, None], torch.nan)
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(scores, labels, ignore_index=IGNORED, label_smoothing=smoothing)
        loss = ClipLoss(smoothing)
        assert torch.allclose(loss(scores, targets), expected)
        parts = [loss(scores[part], targets[part], 6) for part in (slice(0, 3), slice(3, 8))]
        assert torch.allclose(sum(parts), expected)
    assert ClipLoss(0.1)(scores[3:4], targets[3:4]) == 0


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_gradient_accumulation_does_not_change_the_result(folder, tmp_path, image_model, accumulation):
    folder.joinpath("train/dark/0.mp4").write_bytes(b"")  # in one of the accumulation steps
    recipe = Recipe(**{**vars(SHORT), "batch_size": 4, "accumulation": accumulation, "epochs": 2, "lr": 1e-2})
    train(Data.find(folder), image_model, tmp_path / "out", recipe)
    whole = Recipe(**{**vars(recipe), "accumulation": 1})
    train(Data.find(folder), image_model, tmp_path / "whole", whole)
    expected = weights(tmp_path / "whole")
    for key, tensor in weights(tmp_path / "out").items():
        assert torch.allclose(tensor, expected[key], atol=1e-4), key


def test_mixup_mixes_readable_clips_and_their_labels(folder, tmp_path, image_model, monkeypatch):
    data = Data.find(folder)
    model, _ = adapt(data, Source(image_model), SHORT)
    recipe = Recipe(**{**vars(SHORT), "mixup": 1.0})
    trainer = new_trainer(model, clips_of(folder), recipe, tmp_path)
    seen = {}
    monkeypatch.setattr(ClipTrainer.__base__, "compute_loss", lambda self, model, inputs, *a, **k: seen.update(inputs))
    clips = torch.stack([torch.full((2, 3, 32, 32), float(i)) for i in range(4)])
    inputs = {"labels": torch.tensor([0, 1, IGNORED, 1]), "targets": torch.eye(2)[[0, 1, 0, 1]]}
    trainer.compute_loss(model, {"clips": clips, **inputs})
    mixed, targets = seen["pixel_values"][:, 0, 0, 0, 0], seen["labels"]
    assert mixed[2] == 2 and targets[2].isnan().all()
    assert torch.allclose(targets[[0, 1, 3]].sum(-1), torch.ones(3))
    part = targets[0, 0]  # weight of clip 0; the rest is clip 3
    assert torch.allclose(mixed[[0, 1, 3]], torch.stack([3 * (1 - part), part, part * 3 + (1 - part)]))


def test_clips_of_causal_adapters_may_follow_others(folder, tmp_path, image_model, monkeypatch):
    recipe, seen = Recipe(**{**vars(SHORT), "causal": True, "preceded": 0.5}), []
    model, _ = adapt(Data.find(folder), Source(image_model), recipe)
    trainer = new_trainer(model, clips_of(folder), recipe, tmp_path)
    monkeypatch.setattr(ClipTrainer.__base__, "compute_loss", lambda self, model, inputs, *a, **k: seen.append(inputs))
    clips = torch.stack([torch.full((2, 3, 32, 32), float(i)) for i in range(3)])
    for trainer.state.global_step in range(40):
        inputs = {"labels": torch.tensor([0, 1, 1]), "targets": torch.eye(2)[[0, 1, 1]]}
        trainer.compute_loss(model, {"clips": clips, **inputs})
    preceded = [step["pixel_values"] for step in seen if step["pixel_values"].shape[1] == 4]
    assert 10 < len(preceded) < 30
    assert all(torch.equal(pair, torch.cat([clips[[2, 0, 1]], clips], dim=1)) for pair in preceded)
    assert all(step["labels"].argmax(-1).tolist() == [0, 1, 1] for step in seen)
    with pytest.raises(ValueError, match=r"preceded=0\.3 is for causal adapters.*\(--causal\)"):
        new_trainer(adapt(Data.find(folder), Source(image_model), SHORT)[0], [], Recipe(preceded=0.3), tmp_path)


def test_norms_biases_and_the_temporal_embedding_have_no_weight_decay(folder, tmp_path, image_model):
    model, _ = adapt(Data.find(folder), Source(image_model), SHORT)
    decayed = new_trainer(model, clips_of(folder), SHORT, tmp_path).get_decay_parameter_names(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert any("aim_norm" in name for name in trained) and any("aim_head" in name for name in trained)
    for name, parameter in trained.items():
        assert (name in decayed) == (parameter.ndim == 2), name


# From videos to an adapter.


def test_train_saves_an_adapter_with_its_description(folder, tmp_path, capsys):
    broken = write_broken(folder / "train" / "dark")
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "weights.safetensors")
    output = tmp_path / "adapter"
    of_model = ["--model", "test_vit", "--weights", str(tmp_path / "weights.safetensors")]
    assert main(["train", str(folder), *of_model, *OPTIONS, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "val: 4 videos evaluated, 0 skipped" in printed and "true / predicted" in printed
    assert "Files skipped: 4" in printed and all(str(path) in printed for path in broken.values())
    assert re.search(r"workers load up to [\d.]+ clips/s; the model takes [\d.]+ s per step, [\d.]+ clips/s", printed)
    assert {path.name for path in output.iterdir()} == {
        *("adapter_model.safetensors", "adapter_config.json", "README.md"),
        *("report.json", "evaluation.json", "confusion.png", "curve.png"),
    }
    report = json.loads((output / "report.json").read_text())
    assert len(report["skipped"]) == 4 and report["results"]["videos"] == 4 and report["recipe"]["frames"] == 2
    backbone, _ = load_backbone(Source("test_vit", str(tmp_path / "weights.safetensors")))
    model = PeftModel.from_pretrained(backbone, output)
    config = model.peft_config["default"]
    assert config.id2label == {0: "dark", 1: "light"}
    assert config.base_model_name_or_path == "timm/test_vit"
    video = config.video
    assert video["stride"] is None and video["views"] == [1, 1] and video["preprocessing"]["size"] == [160, 160]
    assert video["source"]["weights"] == str(tmp_path / "weights.safetensors")
    assert video["results"]["val"]["videos"] == 4 and video["versions"]["torch"]
    assert model(torch.zeros(1, 2, 3, 160, 160)).shape == (1, 2)
    assert not any("blocks.0.attn.qkv" in key for key in weights(output))


def test_check_finds_broken_videos_before_training(folder, tmp_path, image_model, capsys, monkeypatch):
    write_broken(folder / "train" / "dark")
    seen = []

    def stop(self, **_):
        seen.append(len(self.train_dataset.videos))
        raise KeyboardInterrupt

    monkeypatch.setattr(ClipTrainer, "train", stop)
    arguments = ["train", str(folder), "--model", image_model, *OPTIONS, "--check", "--output", str(tmp_path / "o")]
    assert main(arguments) == 130
    assert seen == [6]
    assert "Checking train" in capsys.readouterr().err


def test_recipes_configure_adapter_and_trainer(folder, tmp_path, image_model, monkeypatch):
    seen = {}

    def stop(self, **_):
        seen.update(arguments=self.args, config=self.model.active_peft_config, trainer=self)
        raise KeyboardInterrupt

    monkeypatch.setattr(ClipTrainer, "train", stop)
    few = ["--recipe", "ssv2", "--batch-size", "16", "--accumulation", "4", "--workers", "0", "--precision", "bf16"]
    pairs, output = ["--flip", "--flip-pairs", "dark=light"], str(tmp_path / "out")
    assert main(["train", str(folder), "--model", image_model, *few, *pairs, "--output", output]) == 130
    arguments, config = seen["arguments"], seen["config"]
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (4, 4)
    assert arguments.learning_rate == pytest.approx(3e-4 * 16 / 64) and arguments.max_grad_norm == 0
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.weight_decay) == (0.9, 0.999, 0.05)
    assert arguments.lr_scheduler_type == "cosine" and arguments.warmup_steps == pytest.approx(2.5 / 50)
    assert arguments.num_train_epochs == 50 and arguments.bf16 and not arguments.fp16
    assert (config.scale, config.temporal_adapters, config.drop_path, config.head_dropout) == (1.0, 2, 0.2, 0.5)
    assert config.final_norm and config.num_frames == 8
    assert seen["trainer"].compute_loss_func.smoothing == 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"recompute": "block"},
        {"mixup": 0.8},
        {"workers": 2},
        {"temporal": "conv"},
        {"causal": True, "preceded": 0.5},
    ],
)
def test_other_recipes_train(folder, tmp_path, image_model, changes):
    recipe = Recipe(**{**vars(SHORT), "label_smoothing": 0.1, "flip": True, **changes})
    _, report = train(Data.find(folder), image_model, tmp_path / "out", recipe)
    assert report.evaluation.videos == 4


def test_trained_adapters_can_be_saved_in_half_precision(folder, tmp_path, image_model):
    adapted, _ = train(
        Data.find(folder), image_model, tmp_path / "out", Recipe(**{**vars(SHORT), "save_dtype": "float16"})
    )
    saved = weights(tmp_path / "out")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    here = adapter_weights(adapted, "default")
    assert all(torch.equal(here[plain(name)], tensor.float()) for name, tensor in saved.items())
    next(iter(here.values())).data.fill_(1e6)
    with pytest.raises(ValueError, match="cannot hold all of"):
        round_weights(adapted, "float16")


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch cannot trace the context managers of PeftModel yet")
def test_compiled_models_are_trained_and_saved_like_others(folder, tmp_path, image_model):
    recipe = Recipe(**{**vars(SHORT), "compile": True, "lr": 1e-2})
    train(Data.find(folder), image_model, tmp_path / "out", recipe)
    train(Data.find(folder), image_model, tmp_path / "plain", Recipe(**{**vars(recipe), "compile": False}))
    expected = weights(tmp_path / "plain")
    for key, tensor in weights(tmp_path / "out").items():
        assert torch.allclose(tensor, expected[key], atol=1e-3), key


def test_random_clips_measure_the_speed_of_the_model(folder, image_model, capsys):
    assert measure_speed(Data.find(folder), image_model, SHORT, steps=3).model_clips_per_second > 0
    assert main(["train", str(folder), "--model", image_model, *OPTIONS, "--patience", "2", "--synthetic"]) == 0
    assert re.search(r"On random clips: the model takes [\d.]+ s per step", capsys.readouterr().out)


def test_the_temporal_branch_is_chosen_on_the_command_line(folder, tmp_path, image_model):
    branch = ["--temporal", "auto", "--temporal-layers", "1,0", "--no-temporal-conv"]
    arguments = ["train", str(folder), "--model", image_model, *OPTIONS, *branch, "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["temporal"], config["temporal_layers"], config["temporal_conv"]) == ("auto", [0, 1], False)
    assert config["temporal_embedding"] == "blocks"
    recipe = config["video"]["recipe"]
    assert (recipe["temporal"], recipe["temporal_layers"], recipe["temporal_embedding"]) == ("auto", [1, 0], "blocks")
    with pytest.raises(SystemExit):
        main([*arguments, "--temporal-layers", "first"])


def test_the_temporal_branch_is_chosen_in_python(folder, image_model):
    data, source = Data.find(folder), Source(image_model)
    for options, recipe in (({"temporal": "conv"}, SHORT), ({}, replace(SHORT, temporal="conv"))):
        adapted, description = adapt(data, source, recipe, **options)
        config = adapted.active_peft_config
        assert (config.temporal, config.temporal_conv, config.temporal_embedding) == ("conv", False, "input")
        assert description.recipe["temporal"] == "conv"
    adapted, description = adapt(data, source, replace(SHORT, temporal="conv"), temporal=True)
    assert adapted.active_peft_config.temporal == description.recipe["temporal"] == "attention"
    assert adapted.active_peft_config.temporal_conv


def test_a_linear_head_alone_can_be_trained(folder, tmp_path, image_model):
    none = {"spatial": False, "temporal": False, "joint": False, "temporal_embedding": False, "final_norm": False}
    _, report = train(Data.find(folder), image_model, tmp_path / "out", SHORT, **none)
    assert report.trained_parameters == 2 * 32 + 2


def test_missing_videos_are_noted(folder):
    data = Data.find(folder)
    assert notes_on(data) == []
    assert notes_on(Data(data.classes, data.train, data.val[2:])) == [
        "The val split has no videos of the classes ['dark']."
    ]
    assert notes_on(Data(data.classes, data.train)) == [
        "There is no val split, so the adapter is not evaluated: the last weights are kept, and curve.png shows the "
        "training loss only."
    ]
    assert notes_on(Data(data.classes, data.train[2:], data.val)) == [
        "The train split has only one video of the classes ['dark']."
    ]
    assert typical_timing(data.train, fps=12) == (pytest.approx(0.4), pytest.approx(10))


# Interruption and resuming.


def arguments(folder: Path, model: str, output: Path, *more: str) -> list[str]:
    options = ["--frames", "2", "--epochs", "6", "--batch-size", "2", "--workers", "1", "--flip", "--lr", "0.01"]
    options += ["--keep", "last"]
    return ["train", str(folder), "--model", model, *options, *more, "--output", str(output)]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, image_model):
    from videos import write

    root = tmp_path_factory.mktemp("once")
    for split, name in (("train", "dark"), ("train", "light"), ("val", "dark"), ("val", "light")):
        for i in range(3):
            write(root / "videos" / split / name / f"{i}.mp4", count=4 + i)
    (root / "videos" / "train" / "dark" / "broken.mp4").write_bytes(b"")
    assert main(arguments(root / "videos", image_model, root / "out")) == 0
    return root


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_training_resumes_to_the_same_result(uninterrupted, tmp_path, image_model, how, capsys):
    videos, output = uninterrupted / "videos", tmp_path / "out"
    command = [sys.executable, "-m", "peft_aim", *arguments(videos, image_model, output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(output / "checkpoints" / "checkpoint-8" / COMPLETE, process)
    process.send_signal(how)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert not (output / "adapter_model.safetensors").exists()
    if how == signal.SIGINT:
        assert "interrupted; a checkpoint is in" in error and "continue with --resume" in error
    # As if killed while writing another checkpoint.
    half = output / "checkpoints" / "checkpoint-99"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    capsys.readouterr()
    assert main(arguments(videos, image_model, output, "--resume")) == 0
    printed = capsys.readouterr().out
    assert "Resuming from" in printed and "checkpoint-99" not in printed
    assert "Files skipped: 1" in printed
    expected = weights(uninterrupted / "out")
    for key, tensor in weights(output).items():
        assert torch.equal(tensor, expected[key]), key


def test_incomplete_checkpoints_are_deleted(tmp_path):
    for step, complete in ((5, True), (10, True), (15, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if complete:
            (tmp_path / f"checkpoint-{step}" / COMPLETE).write_text("[]")
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-15").exists()


def test_runs_only_resume_with_the_same_settings(folder, tmp_path, image_model, capsys, monkeypatch):
    monkeypatch.setattr(ClipTrainer, "train", lambda self, **_: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = ["train", str(folder), "--model", image_model, *OPTIONS, "--output", str(tmp_path / "out")]
    assert main([*arguments, "--resume"]) == 1
    assert "Nothing to resume in" in capsys.readouterr().err
    assert main(arguments) == 130
    assert main(arguments) == 1
    assert "or resume the training run in it with --resume" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--lr", "0.5"]) == 1
    assert "was started with lr=None. Resume it with the same settings" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--workers", "1"]) == 130
    assert "No complete checkpoint yet: training from the start" in capsys.readouterr().out


def test_outputs_are_only_overwritten_on_request(folder, tmp_path, image_model, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    arguments = ["train", str(folder), "--model", image_model, "--output"]
    assert main([*arguments, str(tmp_path / "full")]) == 1
    assert "full is not empty. Give another folder, or write to it with --overwrite." in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "file")]) == 1
    assert "file is a file. Give a folder." in capsys.readouterr().err
    assert main(arguments[:-1]) == 1
    assert "--output is missing. Give the folder to save the adapter to with --output DIR" in capsys.readouterr().err


def test_errors_before_training_leave_the_output_unchanged(folder, tmp_path, image_model, capsys):
    output = tmp_path / "out"
    assert main(["train", str(folder), "--model", "vit_tinny", *OPTIONS, "--output", str(output)]) == 1
    assert not output.exists()
    assert main(["train", str(folder), "--model", image_model, *OPTIONS, "--output", str(output)]) == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    assert main(["train", str(folder), "--model", "vit_tinny", *OPTIONS, "--output", str(output), "--overwrite"]) == 1
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_overwriting_removes_earlier_results(folder, tmp_path, image_model):
    arguments = ["--model", image_model, *OPTIONS, "--output", str(tmp_path / "out")]
    assert main(["train", str(folder), *arguments]) == 0
    shutil.rmtree(folder / "val")
    assert main(["train", str(folder), *arguments, "--overwrite"]) == 0
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"adapter_model.safetensors", "adapter_config.json", "README.md", "report.json", "curve.png"}


def test_training_without_readable_videos_is_an_error(folder, tmp_path, image_model, capsys):
    (folder / "list.txt").write_text("wrong/a.mp4 0\nwrong/b.mp4 1\n")
    arguments = ["--model", image_model, *OPTIONS, "--epochs", "9", "--output", str(tmp_path / "out")]
    assert main(["train", str(folder / "list.txt"), *arguments]) == 1
    error = capsys.readouterr().err
    assert re.search("None of the 2 training videos can be read. .*a.mp4 cannot be read .*No such", error)
    assert "Loading weights" not in error and not (tmp_path / "out").exists()
    (folder / "list.txt").write_text("train/dark/0.mp4 0\ntrain/light/0.mp4 1\n")
    assert main(["train", str(folder / "list.txt"), *arguments, "--epochs", "1"]) == 0


def test_a_batch_that_cannot_be_read_does_not_stop_training(folder, tmp_path, image_model, capsys):
    (folder / "list.txt").write_text("wrong/a.mp4 0\nwrong/b.mp4 1\ntrain/dark/0.mp4 0\ntrain/light/0.mp4 1\n")
    arguments = ["--model", image_model, *OPTIONS, "--batch-size", "1", "--output", str(tmp_path / "out")]
    assert main(["train", str(folder / "list.txt"), *arguments]) == 0
    assert "Files skipped: 2" in capsys.readouterr().out


def test_videos_of_which_only_the_first_frame_can_be_read_leave_nothing(
    folder, tmp_path, image_model, monkeypatch, capsys
):
    """All look readable at first, and none turns out to be."""

    def broken(self, i):
        path = self.videos[i].path if i < len(self.videos) else ""
        clip = torch.zeros(2, 3, 32, 32)
        remarks = {"path": str(path), "skipped": f"{path} is damaged." if path else "", "damaged": "", "hdr": ""}
        return {"clips": clip, "labels": IGNORED, "targets": torch.zeros(2), "seconds": 0.1, **remarks}

    monkeypatch.setattr(TrainingClips, "__getitem__", broken)
    output = tmp_path / "new" / "out"
    assert main(["train", str(folder), "--model", image_model, *OPTIONS, "--output", str(output)]) == 1
    assert re.search(r"None of the training videos can be read. .*\.mp4 is damaged.", capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_errors_before_the_first_checkpoint_leave_nothing_new(folder, tmp_path, image_model, monkeypatch):
    monkeypatch.setattr(ClipTrainer, "training_step", lambda *_, **__: 1 / 0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    for output in (tmp_path / "new" / "out", tmp_path / "full"):
        with pytest.raises(ZeroDivisionError):
            train(Data.find(folder), image_model, output, SHORT, overwrite=True)
    assert not (tmp_path / "new").exists() and [*(tmp_path / "full").iterdir()] == [tmp_path / "full" / "mine.txt"]


def test_unreadable_validation_videos_are_noted(folder, tmp_path, image_model, capsys):
    for path in (folder / "val").rglob("*.mp4"):
        path.write_bytes(b"")
    assert main(["train", str(folder), "--model", image_model, *OPTIONS, "--output", str(tmp_path / "out")]) == 0
    assert "Note: None of the 4 val videos can be read" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "report.json").read_text())["results"] is None


def test_flip_pairs_need_flip(folder, tmp_path, image_model, capsys):
    arguments = ["train", str(folder), "--model", image_model, *OPTIONS, "--flip-pairs", "dark=light"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 1
    assert "Add --flip" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["dark=light", "dark=grey"], "pairs the class 'dark' with both 'light' and 'grey'. Give one pair for each"),
        (
            ["dark=light", "0=grey"],
            "pairs the class 'dark' with both 'light' and 'grey'. Give one pair for each class.",
        ),
        (["light=light"], "pairs the class 'light' with itself. Leave out this pair: classes without a pair keep"),
        (["2=light"], "flip_pairs=(('2', 'light'),) pairs the class 'light' with itself. Leave out this pair"),
    ],
    ids=str,
)
def test_contradictory_flip_pairs_are_found_before_anything_is_loaded(folder, tmp_path, capsys, pairs, message):
    write(folder / "train" / "grey" / "0.mp4", count=4)
    arguments = ["train", str(folder), "--model", "no-such-model", *OPTIONS, "--flip", "--flip-pairs", *pairs]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error and "flip_pairs=((" in error and "no-such-model" not in error
    assert not (tmp_path / "out").exists()


def test_runs_only_resume_with_the_same_videos(folder, tmp_path, image_model, capsys, monkeypatch):
    monkeypatch.setattr(ClipTrainer, "train", lambda self, **_: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = ["train", str(folder), "--model", image_model, *OPTIONS, "--output", str(tmp_path / "out")]
    assert main(arguments) == 130
    (folder / "train" / "dark" / "0.mp4").unlink()
    assert main([*arguments, "--resume"]) == 1
    error, where = capsys.readouterr().err, folder / "train" / "dark" / "0.mp4"
    assert f"{tmp_path / 'out'} was started with other videos: 1 went: train {where}. Resume it with the same" in error
    assert "videos and labels, or train again with --overwrite." in error
    (tmp_path / "out" / "checkpoints" / "videos.txt").unlink()  # earlier versions had none
    assert main([*arguments, "--resume"]) == 1
    assert re.search("was started with videos='[0-9a-f]+'", capsys.readouterr().err)


def test_the_ctrl_c_handler_is_restored_after_errors(folder, tmp_path, image_model, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(ClipTrainer, "training_step", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(Data.find(folder), image_model, tmp_path / "out", SHORT)
    assert signal.getsignal(signal.SIGINT) is before


def test_adapters_are_saved_before_evaluation(folder, tmp_path, image_model, monkeypatch):
    def interrupt(self, views=None):
        if views is None:
            raise KeyboardInterrupt
        return validate(self, views)

    validate = ClipTrainer.validate
    monkeypatch.setattr(ClipTrainer, "validate", interrupt)
    assert main(["train", str(folder), "--model", image_model, *OPTIONS, "--output", str(tmp_path / "out")]) == 130
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


# Several processes.


def test_two_processes_train_the_same_adapter_as_one(folder, tmp_path, image_model, capsys):
    (folder / "train" / "light" / "3.mp4").write_bytes(b"")  # one process has more broken clips than the other
    options = ["--frames", "2", "--epochs", "3", "--batch-size", "4", "--workers", "0", "--flip", "--lr", "0.01"]
    same = ["--drop-path", "0", "--head-dropout", "0"]
    command = ["train", str(folder), "--model", image_model, *options, *same, "--views", "3x1", "--output"]
    flags = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *flags, "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0", "-m", "peft_aim", *command, str(tmp_path / "two")]
    result = subprocess.run(launch, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert main([*command, str(tmp_path / "one")]) == 0
    for printed in (capsys.readouterr().out, result.stdout):
        assert printed.count("val: 4 videos evaluated") == 1
        assert "Files skipped: 1" in printed
    expected = weights(tmp_path / "one")
    for key, tensor in weights(tmp_path / "two").items():
        assert torch.allclose(tensor, expected[key], atol=1e-5), key
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert one["views"]["3x1"]["confusion"] == two["views"]["3x1"]["confusion"]
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert one["kept"] == two["kept"] and len(two["curve"]) == 3
    for point, expected in zip(two["curve"], one["curve"], strict=True):
        assert point == {**expected, "loss": pytest.approx(expected["loss"], abs=1e-4)}
    assert len(re.findall("^epoch ", result.stdout, re.M)) == 3


def test_batches_that_cannot_be_divided_are_rejected(folder, tmp_path, image_model, monkeypatch):
    class Three:
        num_processes = 3

    model, _ = adapt(Data.find(folder), Source(image_model), SHORT)
    monkeypatch.setattr("peft_aim.video.training.arguments.processes", Three)
    with pytest.raises(ValueError, match="batch_size=4 cannot be divided among 3 processes .*Give a multiple of 3"):
        new_trainer(model, clips_of(folder), SHORT, tmp_path)
