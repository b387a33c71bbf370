"""Prediction from saved adapters: in a fresh process, with several adapters, over time; the model card."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model
from PIL import Image
from videos import write, write_broken

from benchmarks.containers.forms import Encoded
from benchmarks.containers.numbered import numbered
from peft_aim import AIMConfig
from peft_aim.__main__ import main
from peft_aim.video.adapters import load_adapters
from peft_aim.video.backbones import Source
from peft_aim.video.data.data import Data
from peft_aim.video.data.listing import Sample
from peft_aim.video.description import Description
from peft_aim.video.pipeline import video_pipeline
from peft_aim.video.predict import predict
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.run import train

SHORT = Recipe(frames=2, epochs=2, batch_size=4, lr=1e-2, workers=0)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, image_model) -> Path:
    """Two adapters for one backbone, with different numbers of frames, classes and views."""
    root = tmp_path_factory.mktemp("tasks")
    for name, classes, recipe in (
        ("one", 2, SHORT),
        ("two", 3, Recipe(**{**vars(SHORT), "frames": 3, "views": (2, 3)})),
    ):
        for split in ("train", "val"):
            for label in range(classes):
                for i in range(2):
                    write(root / f"videos-{name}" / split / f"{name}{label}" / f"{i}.mp4", count=6)
        train(Data.find(root / f"videos-{name}"), image_model, root / name, recipe)
    write(root / "video.mp4", count=6)
    write(root / "long.mp4", count=30)
    return root


def test_predictions_are_the_scores_of_the_model(tasks):
    (prediction,) = predict(str(tasks / "one"), tasks / "video.mp4", top_k=9)
    loaded = load_adapters([str(tasks / "one")])
    from peft_aim.video.data.clips import EvaluationClips

    description = loaded.descriptions[0]
    clips = EvaluationClips([Sample(tasks / "video.mp4", 0)], description.views_with(1, 1), 1, 12)[0]["clips"]
    with torch.no_grad():
        expected = loaded.model(clips).logits.softmax(-1)[0]
    assert dict(prediction.top) == {f"one{i}": pytest.approx(float(p), abs=1e-6) for i, p in enumerate(expected)}
    assert prediction.top[0][1] >= prediction.top[1][1] and prediction.windows == []


def test_adapters_are_swapped_on_one_backbone(tasks, monkeypatch, tmp_path):
    from peft_aim.video import adapters

    loads, load = [], adapters.load_backbone
    monkeypatch.setattr(adapters, "load_backbone", lambda source: loads.append(source) or load(source))
    names = [str(tasks / "one"), str(tasks / "two")]
    together = predict(names, [tasks / "video.mp4", tasks / "long.mp4"], output=tmp_path / "pictures")
    assert len(loads) == 1
    alone = [p for video in ("video.mp4", "long.mp4") for name in names for p in predict(name, tasks / video)]
    assert together == alone
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"video.mp4.png", "long.mp4.png"}
    assert np.asarray(Image.open(tmp_path / "pictures" / "video.mp4.png")).std() > 10


def test_long_videos_are_predicted_in_windows(tasks):
    (prediction,) = predict(str(tasks / "one"), tasks / "long.mp4")
    assert load_adapters([str(tasks / "one")]).descriptions[0].seconds == pytest.approx(0.5)
    assert len(prediction.windows) == 11
    assert prediction.windows[0].begin == 0 and prediction.windows[-1].end == pytest.approx(2.9)
    mean = np.mean([dict(window.top)["one0"] for window in prediction.windows])
    assert dict(prediction.top)["one0"] == pytest.approx(mean, abs=1e-6)
    (whole,) = predict(str(tasks / "one"), tasks / "long.mp4", window=0)
    assert whole.windows == []
    assert len(predict(str(tasks / "one"), tasks / "long.mp4", window=1.5)[0].windows) == 3


def test_windows_are_scored_in_batches_with_a_progress_bar(tasks, monkeypatch, capsys):
    from peft_aim.video import predict as module

    sizes, score = [], module.score
    monkeypatch.setattr(
        module, "score", lambda model, clips, *how: sizes.append(len(clips)) or score(model, clips, *how)
    )
    (prediction,) = predict(str(tasks / "one"), tasks / "long.mp4", batch_size=4)
    assert sizes == [4, 4, 3]
    bar = capsys.readouterr().err
    assert "long.mp4" in bar and "/11 [" in bar and "window/s" in bar
    sizes.clear()
    (other,) = predict(str(tasks / "one"), tasks / "long.mp4", batch_size=100)
    assert sizes == [11] and other.top == [(name, pytest.approx(p, abs=1e-6)) for name, p in prediction.top]


def test_the_picture_of_a_long_video_shows_the_prediction_of_its_window(tasks, tmp_path, monkeypatch):
    from peft_aim.video import predict as module

    drawn = []
    monkeypatch.setattr(module, "draw_strip", lambda path, rows: drawn.extend(rows))
    (prediction,) = predict(str(tasks / "one"), tasks / "long.mp4", output=tmp_path)
    guess, probability = max((window.top[0] for window in prediction.windows), key=lambda top: top[1])
    assert drawn[0].text.split() == [guess, f"{probability:.0%}"]


def test_folders_of_images_are_predicted_at_their_rate(tasks, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(24):
        Image.fromarray(np.full((32, 48, 3), 10 * i, dtype=np.uint8)).save(folder / f"{i:05}.png")
    (prediction,) = predict(str(tasks / "one"), folder)
    assert prediction.windows[-1].end == pytest.approx(23 / 12)  # the default, 12 frames per second
    (prediction,) = predict(str(tasks / "one"), folder, fps=24)
    assert prediction.windows[-1].end == pytest.approx(23 / 24)


def test_pictures_of_videos_with_one_name_do_not_overwrite_each_other(tasks, tmp_path):
    paths = [tmp_path / place / "x" / "y" / "video.mp4" for place in ("a", "b")] + [tmp_path / "a" / "other.mp4"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tasks / "video.mp4", path)
    predict(str(tasks / "one"), paths, output=tmp_path / "pictures")
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"1_x_y_video.mp4.png", "2_x_y_video.mp4.png", "other.mp4.png"}


@pytest.mark.parametrize("arguments", [["--json", "--", "-1.mp4"], ["--", "-1.mp4", "--json.mp4"], ["-- -1.mp4"]])
def test_names_may_begin_with_a_dash(tasks, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    for name in ("-1.mp4", "--json.mp4"):
        shutil.copy(tasks / "video.mp4", tmp_path / name)
    arguments = arguments[0].split() if len(arguments) == 1 else arguments
    assert main(["predict", str(tasks / "one"), *arguments]) == 0
    assert "-1.mp4" in capsys.readouterr().out


def test_options_may_stand_between_videos(tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    video = str(tasks / "video.mp4")
    assert main(["predict", str(tasks / "one"), video, "--top-k", "1", str(tasks / "long.mp4"), "--json"]) == 0
    assert [len(row["top"]) for row in json.loads(capsys.readouterr().out)] == [1, 1]


def test_damaged_and_hdr_videos_are_named(tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Encoded(flags={"movflags": "faststart"})(numbered(60), tmp_path / "half.mp4")
    data = (tmp_path / "half.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    assert main(["predict", str(tasks / "one"), "half.mp4", "--adapter", str(tasks / "two")]) == 0
    error = capsys.readouterr().err
    assert re.search(r"damaged: \d+ of 60 frames of half.mp4 cannot be decoded, the first at .* \(byte \d+\)", error)
    assert error.count("half.mp4 cannot be decoded") == 1  # for both adapters


def test_an_output_that_cannot_be_written_is_found_before_the_work(tasks, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["predict", str(tasks / "one"), str(tasks / "video.mp4"), "--output", str(tmp_path / "file")]) == 1
    assert f"The output {tmp_path / 'file'} is a file. Give a folder." in capsys.readouterr().err


def test_predictions_are_printed_if_their_picture_cannot_be_written(tasks, tmp_path, monkeypatch, capsys):
    from peft_aim.video import predict as module

    def full(path, rows):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(module, "draw_strip", full)
    assert main(["predict", str(tasks / "one"), str(tasks / "video.mp4"), "--output", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "video.mp4: one" in captured.out and "video.mp4.png cannot be written: No space left" in captured.err


def test_predict_runs_in_a_fresh_process(tasks, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "peft_aim", "predict", str(tasks / "one"), "video.mp4"]
    shutil.copy(tasks / "video.mp4", tmp_path)
    more = ["--adapter", str(tasks / "two"), "--top-k", "2"]
    result = subprocess.run([*command, *more], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    here = predict([str(tasks / "one"), str(tasks / "two")], tasks / "video.mp4", top_k=2)
    for prediction in here:
        classes = ", ".join(f"{name} {probability:.1%}" for name, probability in prediction.top)
        assert f"{prediction.adapter}: video.mp4: {classes}" in result.stdout
    assert (tmp_path / "predictions" / "video.mp4.png").is_file()


def test_broken_videos_are_reported_and_the_others_predicted(tasks, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken = write_broken(tmp_path / "broken")
    paths = [str(path) for path in broken.values()]
    assert main(["predict", str(tasks / "one"), *paths, str(tasks / "video.mp4"), "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert [Path(row["video"]).name for row in rows] == [*(path.name for path in broken.values()), "video.mp4"]
    assert [bool(row["broken"]) for row in rows] == [True, True, True, False, False]
    assert all((row["top"] == []) == bool(row["broken"]) for row in rows)
    assert all(f"skipped: {broken[what]} cannot" in captured.err for what in ("truncated", "note", "empty"))
    assert main(["predict", str(tasks / "one"), paths[0]]) == 1
    assert main(["predict", str(tasks / "one")]) == 1
    assert (
        "is read as the adapter, and no video follows. Give the adapter, then one or more videos"
        in capsys.readouterr().err
    )
    assert main(["predict", str(tasks / "one"), str(tasks / "video.mp4"), "--window", "-1"]) == 1
    assert "window=-1.0 is out of range" in capsys.readouterr().err
    video = str(tasks / "video.mp4")
    assert main(["predict", video, "--adapter", str(tasks / "one"), "--adapter", str(tasks / "two")]) == 0


def test_adapters_that_cannot_be_loaded_are_explained(tasks, tmp_path, image_model):
    with pytest.raises(ValueError, match="is not an AIM adapter: it has no adapter_config.json. Give the adapter"):
        load_adapters([str(tasks / "video.mp4")])
    with pytest.raises(ValueError, match="my-tsak is neither a folder nor a Hub id, OWNER/NAME"):
        load_adapters(["my-tsak"])
    model = get_peft_model(tf.ViTForImageClassification.from_pretrained(image_model), AIMConfig(num_labels=2))
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="bare does not describe how to make clips from a video file"):
        load_adapters([str(tmp_path / "bare")])
    other = tf.ViTForImageClassification(tf.ViTConfig.from_pretrained(image_model))
    other.save_pretrained(tmp_path / "other")
    tf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"was trained on a backbone with the fingerprint .* The backbone loaded here is .*other"
    ):
        load_adapters([str(tasks / "one")], Source(str(tmp_path / "other")))
    train(Data.find(tasks / "videos-one"), str(tmp_path / "other"), tmp_path / "third", SHORT)
    with pytest.raises(
        ValueError, match="third was trained on the backbone .*other, but .*one on .*vit. Load adapters of one"
    ):
        load_adapters([str(tasks / "one"), str(tmp_path / "third")])
    train(Data.find(tasks / "videos-one"), Source("test_vit", random_weights=True), tmp_path / "noise", SHORT)
    with pytest.raises(ValueError, match="noise was trained on a backbone with random weights, which were not saved"):
        load_adapters([str(tmp_path / "noise")])


def test_descriptions_survive_saving(tasks):
    config = AIMConfig.from_pretrained(tasks / "two")
    description = Description.read(config, "two")
    assert description.classes == ["two0", "two1", "two2"]
    assert (description.frames, description.stride, description.views) == (3, None, (2, 3))
    assert (description.seconds, description.rate) == (0.5, 10) and description.clip_rate == pytest.approx(3 / 0.6)
    assert description.recipe["lr"] == 1e-2 and description.results["val"]["views"].keys() == {"1x1", "2x3"}
    again = AIMConfig(num_frames=3, id2label=config.id2label)
    description.write(again)
    assert Description.read(again, "two") == description


# transformers' pipeline.


def test_transformers_pipeline_classifies_videos(tasks):
    classify = video_pipeline(str(tasks / "two"))
    assert isinstance(classify, tf.VideoClassificationPipeline)
    paths = [str(tasks / "video.mp4"), str(tasks / "long.mp4")]
    for path, found in zip(paths, classify(paths, top_k=3), strict=True):
        (expected,) = predict(str(tasks / "two"), path, window=0)
        assert [(row["label"], pytest.approx(row["score"], abs=1e-6)) for row in found] == expected.top
    assert len(classify(paths[0], top_k=1)) == 1
    assert sum(row["score"] for row in classify(paths[0])) == pytest.approx(1)


# The model card.


def test_the_code_of_the_card_runs(tasks):
    card = ModelCard.load(tasks / "one" / "README.md")
    blocks = re.findall(r"```python\n(.*?)```", card.text, re.S)
    assert len(blocks) == 2
    # The second block, which loads the adapter with PEFT, goes first: it has to register AIM itself.
    each_alone = f"for block in {blocks[::-1]!r}: exec(block, {{}})"
    result = subprocess.run([sys.executable, "-c", each_alone], capture_output=True, text=True, cwd=tasks)
    assert result.returncode == 0, result.stderr
    assert "video.mp4: one" in result.stdout


def test_the_card_has_metadata_for_the_hub(tasks, image_model):
    card = ModelCard.load(tasks / "two" / "README.md")
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "video-classification"
    assert card.data.base_model == image_model and f"`{image_model}`" in card.text and "aim" in card.data.tags
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results.keys() == {"top-1, 1x1 views", "top-1, 2x3 views"}
    for text in (
        "distinguishes 3 classes: two0, two1, two2",
        "3 frames, one from each of 3 equal segments",
        "lr 0.01",
    ):
        assert text in card.text
    assert "| val | 6 | 2 x 3 |" in card.text


def test_edited_cards_are_kept(tasks, tmp_path, image_model):
    model = PeftModel.from_pretrained(tf.ViTForImageClassification.from_pretrained(image_model), tasks / "one")
    model.save_pretrained(tmp_path / "new")
    readme = tmp_path / "new" / "README.md"
    assert "# new" in readme.read_text() and "two classes" not in readme.read_text()
    readme.write_text("---\nlicense: mit\n---\n\n# My own words\n")
    model.save_pretrained(tmp_path / "new")
    assert "# My own words" in readme.read_text() and "## Use" not in readme.read_text()


def test_cards_of_earlier_versions_are_updated(tmp_path, image_model):
    model = get_peft_model(tf.ViTForImageClassification.from_pretrained(image_model), AIMConfig(num_frames=4))
    (tmp_path / "README.md").write_text("---\ntags: [aim]\n---\n\n<!-- Generated by peft_aim, in other words. -->\n")
    model.save_pretrained(tmp_path)
    assert "to clips of 4 frames" in (tmp_path / "README.md").read_text()


def test_adapters_without_a_description_have_a_card_too(tmp_path, image_model):
    model = get_peft_model(tf.ViTForImageClassification.from_pretrained(image_model), AIMConfig(num_frames=4))
    model.save_pretrained(tmp_path / "bare")
    text = (tmp_path / "bare" / "README.md").read_text()
    assert "to clips of 4 frames" in text and "peft_aim.video" not in text
    assert 'PeftModel.from_pretrained(backbone, "bare")' in text


def test_other_peft_methods_keep_their_card(tmp_path, image_model):
    from peft import LoraConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(
            tf.ViTForImageClassification.from_pretrained(image_model), LoraConfig(target_modules="all-linear")
        )
        model.save_pretrained(tmp_path / "lora")
    assert "Model Card for Model ID" in (tmp_path / "lora" / "README.md").read_text()
