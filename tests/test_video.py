"""From video files to an adapter: decoding, sampling, folders with broken files, the command line, the demo."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import timm
import torch
import transformers as tf
from peft import PeftModel
from PIL import Image
from safetensors.torch import save_file

from peft_aim.cli import main
from peft_aim.video import demo as demo_module
from peft_aim.video import digits
from peft_aim.video.backbones import load_backbone
from peft_aim.video.decode import BrokenVideo, index_frames, read_frames
from peft_aim.video.folder import VideoFolder, class_names, scan
from peft_aim.video.sampling import one_per_segment, strided
from peft_aim.video.train import ClipTrainer, Recipe, check_output, notes_on, train
from peft_aim.video.transforms import Preprocessing, for_evaluation, for_training

GREY = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)


def write(path: Path, count: int = 12, size: tuple[int, int] = (32, 48), key_every: int = 5) -> Path:
    """Write a video whose frame i has the grey value 20 i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "5", "g": str(key_every), "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv444p"
        for i in range(count):
            image = np.full((*size, 3), 20 * i % 256, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def shown(frames: torch.Tensor) -> list[int]:
    return (frames.float().mean((1, 2, 3)) / 20).round().int().tolist()


# Decoding.


@pytest.mark.parametrize("indices", [[0, 1, 2], [11], [3, 3, 9], [10, 2, 6], list(range(12))])
def test_the_frames_asked_for_are_read(tmp_path, indices):
    frames = read_frames(write(tmp_path / "a.mp4"), indices)
    assert frames.shape == (len(indices), 3, 32, 48)
    assert frames.dtype == torch.uint8
    assert shown(frames) == indices


def test_index_counts_frames_and_knows_where_decoding_can_start(tmp_path):
    index = index_frames(write(tmp_path / "a.mp4"))
    assert len(index) == 12
    assert index.keys[0] == index.times[0] and len(index.keys) > 1
    assert set(index.keys) < set(index.times)


def test_a_truncated_video_gives_the_frames_that_are_there(tmp_path):
    path = tmp_path / "a.mkv"  # its frames come before any table of contents
    data = write(path, count=60, size=(64, 64)).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    count = len(index_frames(path))
    assert 5 < count < 60
    assert read_frames(path, [0, count - 1]).shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "cannot be read"), (b"no video, but a note\n" * 50, "cannot be read as a video")]
)
def test_files_that_are_no_videos_are_named(tmp_path, content, message):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(BrokenVideo, match=f"broken.mp4 {message}"):
        index_frames(path)


def test_sound_without_pictures_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BrokenVideo, match="has no video in it"):
        read_frames(path, [0])


# Sampling.


@pytest.mark.parametrize("count", [1, 3, 8, 30, 301])
@pytest.mark.parametrize("frames", [1, 8, 16])
def test_segments_are_covered_in_order(count, frames):
    for random in (True, False):
        indices = one_per_segment(count, frames, random)
        assert len(indices) == frames and indices == sorted(indices)
        for i, index in enumerate(indices):
            assert int(i * count / frames) <= index <= min(count - 1, int((i + 1) * count / frames))


def test_strides_are_kept_and_short_videos_loop():
    assert strided(64, 4, stride=16, random=False) == [7, 23, 39, 55]
    assert strided(10, 4, stride=4, random=False) == [0, 4, 8, 2]
    starts = {strided(50, 8, stride=4, random=True)[0] for _ in range(500)}
    assert starts == set(range(50 - 28))


# Preparing.


def test_all_frames_of_a_clip_are_cropped_and_flipped_alike():
    frame = torch.randint(0, 255, (1, 3, 40, 60), dtype=torch.uint8)
    transform = for_training(GREY, crop_scale=(0.2, 1.0), flip=True)
    results = [transform(frame.expand(5, -1, -1, -1)) for _ in range(10)]
    assert all(torch.equal(clip, clip[:1].expand_as(clip)) for clip in results)
    assert not torch.equal(results[0], results[1])


def test_evaluation_takes_the_centre():
    frame = torch.zeros(1, 3, 16, 48, dtype=torch.uint8)
    frame[..., 16:32] = 255
    assert torch.equal(for_evaluation(GREY)(frame), torch.ones(1, 3, 16, 16))


# Folders.


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "videos"
    for split, count in (("train", 3), ("val", 2)):
        for name in ("dark", "light"):
            for i in range(count):
                write(root / split / name / f"{i}.mp4", count=4 + i)
    return root


def test_broken_files_are_left_out_and_named(folder):
    (folder / "train" / "dark" / "empty.mp4").write_bytes(b"")
    (folder / "train" / "light" / "note.mp4").write_text("not a video")
    (folder / "train" / "light" / "readme.txt").write_text("no video, and not meant as one")
    found = scan(folder, "train", class_names(folder))
    assert len(found.videos) == 6
    assert {path.name for path in found.broken} == {"empty.mp4", "note.mp4"}


def test_a_video_that_breaks_after_the_scan_is_labelled_to_be_ignored(folder):
    found = scan(folder, "train", class_names(folder))
    clips = VideoFolder(found.videos, lambda count: one_per_segment(count, 4, False), for_evaluation(GREY))
    assert clips[0]["labels"] == 0 and clips[5]["labels"] == 1
    found.videos[0][0].write_bytes(b"")
    assert clips[0]["labels"] == -100
    assert clips[0]["clips"].shape == clips[5]["clips"].shape == (4, 3, 16, 16)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: shutil.rmtree(root / "train"), r"has no folders train/<class> in it.*train/<class>/\*.mp4"),
        (lambda root: (root / "val" / "dim").mkdir(), r"has the classes \['dim'\], which .*train doesn't have"),
        (
            lambda root: [path.write_bytes(b"") for path in (root / "val").rglob("*.mp4")],
            "None of the 4 video files below .*val can be read",
        ),
    ],
)
def test_folders_that_cannot_be_used_are_refused(folder, break_it, message, capsys):
    break_it(folder)
    assert (
        main(["train", str(folder), "--model", "test_vit", "--random-weights", "--output", str(folder / "out")]) == 1
    )
    assert len(capsys.readouterr().err.split(":", 1)[1]) > 20
    with pytest.raises(ValueError, match=message):
        classes = class_names(folder)
        scan(folder, "val", classes)


# Training by the command line.


def test_train_saves_an_adapter_that_loads(folder, tmp_path, capsys):
    (folder / "train" / "dark" / "empty.mp4").write_bytes(b"")
    weights = timm.create_model("test_vit", num_classes=0).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    output = tmp_path / "adapter"
    of_model = ["--model", "test_vit", "--weights", str(tmp_path / "weights.safetensors")]
    short = ["--frames", "4", "--epochs", "2", "--batch-size", "4", "--workers", "0"]
    code = main(["train", str(folder), *of_model, *short, "--output", str(output)])
    printed = capsys.readouterr().out
    assert code == 0
    assert "on 4 videos of val, 2 classes" in printed
    assert "Files skipped: 1" in printed and "empty.mp4" in printed
    report = json.loads((output / "report.json").read_text())
    assert report["videos"] == 4 and list(report["skipped"]) == [str(folder / "train" / "dark" / "empty.mp4")]
    backbone, _ = load_backbone("test_vit", str(tmp_path / "weights.safetensors"))
    model = PeftModel.from_pretrained(backbone, output)
    assert model.peft_config["default"].id2label == {0: "dark", 1: "light"}
    assert model(torch.zeros(1, 4, 3, 160, 160)).shape == (1, 2)


def test_every_image_counts_its_own_preprocessing():
    _, preprocessing = load_backbone("vit_tiny_patch16_224", random_weights=True)
    assert preprocessing == Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vit_tinny"], "timm has no model 'vit_tinny'"),
        (["--model", "vit_tiny_patch16_224", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["--model", "no/where"], "transformers cannot load 'no/where'"),
        (["--model", "test_vit"], "pretrained weights of test_vit could not be loaded.*--random-weights"),
    ],
)
def test_models_that_cannot_be_had_are_explained(folder, tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["train", str(folder), "--output", str(tmp_path / "out"), *arguments]) == 1
    assert re.search(message, capsys.readouterr().err, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride=0 is out of range: give 1 or more"),
        ({"epochs": 0}, "epochs=0 is out of range"),
        ({"frames": 0}, "frames=0 is out of range"),
        ({"batch_size": 0}, "batch_size=0 is out of range"),
        ({"lr": float("nan")}, "lr=nan is out of range: give a positive number"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 is out of range"),
        ({"drop_path": 1.0}, r"drop_path=1.0 is out of range: give in \[0, 1\)"),
        ({"crop_scale": (2.0, 1.0)}, r"crop_scale=\(2.0, 1.0\) is out of range: give two numbers in \(0, 1\]"),
        ({"workers": -1}, "workers=-1 is out of range"),
    ],
    ids=str,
)
def test_recipes_are_validated(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_nothing_is_overwritten_unasked(folder, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    arguments = ["train", str(folder), "--model", "test_vit", "--random-weights", "--output"]
    assert main([*arguments, str(tmp_path / "full")]) == 1
    assert "full is not empty. Give another folder, or allow it with --overwrite." in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "file")]) == 1
    assert "file is a file. Give a folder." in capsys.readouterr().err
    check_output(tmp_path / "full", overwrite=True)
    check_output(tmp_path / "new", overwrite=False)


def test_what_limits_the_accuracy_is_noted(folder, capsys):
    for path in (folder / "val" / "dark").iterdir():
        path.unlink()
    splits = {split: scan(folder, split, ["dark", "light"]) for split in ("train", "val")}
    assert notes_on(splits, ["dark", "light"]) == ["No video of val that could be read is of the classes ['dark']."]
    del splits["val"]
    assert notes_on(splits, ["dark", "light"]) == ["There is no split val, so nothing was evaluated."]


def test_one_class_is_refused_and_hidden_folders_are_no_class(folder):
    (folder / "train" / ".cache").mkdir()
    assert class_names(folder) == ["dark", "light"]
    shutil.rmtree(folder / "train" / "dark")
    with pytest.raises(ValueError, match="train has one class only, 'light': there is nothing to tell apart"):
        class_names(folder)


def test_an_adapter_is_saved_before_anything_can_go_wrong_in_evaluation(folder, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ClipTrainer, "evaluate", interrupt)
    short = ["--model", "test_vit", "--random-weights", "--frames", "2", "--epochs", "1", "--workers", "0"]
    assert main(["train", str(folder), *short, "--output", str(tmp_path / "out")]) == 130
    assert "peft-aim train: interrupted" in capsys.readouterr().err
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_linear_head_alone_can_be_trained(folder, tmp_path):
    recipe = Recipe(frames=2, epochs=1, workers=0)
    none = {"spatial": False, "temporal": False, "joint": False, "temporal_embedding": False}
    model, report = train(folder, "test_vit", tmp_path / "out", recipe, random_weights=True, **none)
    assert report.trained_parameters == 2 * model.base_model.model.num_features + 2


def test_transformers_models_get_the_crop_that_their_processor_takes(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    tf.DeiTForImageClassification(tf.DeiTConfig(**small)).save_pretrained(tmp_path)
    tf.DeiTImageProcessor().save_pretrained(tmp_path)
    assert load_backbone(str(tmp_path))[1].size == (224, 224)


# The demo.


@pytest.mark.parametrize("task", digits.TASKS)
def test_no_single_frame_tells_the_class(task):
    """Frames of all classes look alike on average; only at a known moment they don't."""
    drawn, _ = digits.videos(task, per_class=400, held_out=False)
    of_class = drawn.unflatten(0, (4, 400))
    at_any_time = of_class.mean((1, 2))
    at_first = of_class[:, :, 0].mean(1)
    assert (at_any_time - at_any_time.mean(0)).abs().max() < 0.06
    assert (at_first - at_first.mean(0)).abs().max() > 0.12


def test_the_demo_runs_from_end_to_end(tmp_path, monkeypatch, capsys):
    """The machinery, not the numbers: a few videos and steps."""
    monkeypatch.setattr(demo_module, "VIDEOS_PER_CLASS", {"train": 4, "val": 2})
    monkeypatch.setattr(demo_module, "PRETRAINING_STEPS", 2)
    monkeypatch.setattr(demo_module.RECIPE, "epochs", 1)
    monkeypatch.setattr(demo_module.RECIPE, "workers", 0)
    assert main(["demo", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for task in digits.TASKS:
        assert f"{task:8} AIM " in printed
        assert (tmp_path / f"{task}-aim" / "adapter_model.safetensors").is_file()
    assert np.asarray(Image.open(tmp_path / "predictions.png")).std() > 10
