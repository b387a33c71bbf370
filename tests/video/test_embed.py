"""Vectors of videos, with scikit-learn as the one that searches by them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from videos import write, write_broken, write_classes

import peft_aim.video
from peft_aim.__main__ import main
from peft_aim.video.adapters import load_adapters
from peft_aim.video.data import EvaluationClips, Sample, given_videos
from peft_aim.video.data.data import Data
from peft_aim.video.embedding import embed
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.run import train


@pytest.fixture(scope="module")
def task(tmp_path_factory, image_model) -> Path:
    """A folder with an adapter that averages 2 x 3 views, and its videos."""
    root = tmp_path_factory.mktemp("embed")
    write_classes(root / "videos", val=2)
    recipe = Recipe(frames=2, epochs=1, batch_size=4, lr=1e-2, workers=0, views=(2, 3))
    train(Data.find(root / "videos"), image_model, root / "my-task", recipe)
    return root


def names(videos: list) -> list[str]:
    return [Path(video.path).name for video in videos]


def test_a_vector_is_what_the_head_gets_averaged_over_views(task):
    video = task / "videos" / "val" / "dark" / "1.mp4"
    found = embed(task / "my-task", video, workers=0)
    loaded = load_adapters(str(task / "my-task"))
    clips = EvaluationClips([Sample(video, 0)], loaded.descriptions[0].views_with(2, 3), 1, 12)[0]["clips"][:6]
    with torch.no_grad():
        mean_scores = loaded.model(clips).logits.mean(0)
        scores = loaded.model.base_model.model.classifier(torch.from_numpy(found.vectors))[0]
    assert found.vectors.shape == (1, 32) and found.vectors.dtype == np.float32
    assert torch.allclose(scores, mean_scores, atol=1e-5)
    assert (found.paths, found.labels) == ([str(video)], [""])
    assert peft_aim.video.embed is embed


def test_the_files_are_read_by_others(task, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["embed", str(task / "my-task"), str(task / "videos"), "--split", "train", "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert "6 videos embedded, 0 skipped: vectors of 32 numbers, not normalized.\n" in printed
    assert printed.endswith(f"Saved my-task-embeddings.safetensors and my-task-embeddings.csv to {tmp_path}\n")
    vectors = load_file("my-task-embeddings.safetensors")["embeddings"]
    rows = list(csv.DictReader(Path("my-task-embeddings.csv").read_text().splitlines()))
    assert vectors.shape == (6, 32) and [row["label"] for row in rows] == ["dark"] * 3 + ["light"] * 3
    with safe_open("my-task-embeddings.safetensors", "np") as file:
        facts = file.metadata()
    config = load_adapters(str(task / "my-task")).model.active_peft_config
    assert facts == {
        "adapter": str(task / "my-task"),
        "fingerprint": config.backbone_fingerprint,
        "views": "2x3",
        "dims": "32",
    }
    nearest = NearestNeighbors(n_neighbors=1).fit(vectors)
    again = embed(task / "my-task", [row["path"] for row in rows], batch_size=1, workers=1)
    distances, found = nearest.kneighbors(again.vectors)
    assert distances.max() < 1e-4 and (found[:, 0] % 3).tolist() == 2 * [0, 1, 2]  # both classes have the same frames
    assert again.paths == [row["path"] for row in rows]
    assert LogisticRegression().fit(vectors, [row["label"] for row in rows]).classes_.tolist() == ["dark", "light"]
    assert names(given_videos("my-task-embeddings.csv")) == [Path(row["path"]).name for row in rows]


def test_broken_videos_have_no_vector_and_are_reported(task, tmp_path, capsys):
    broken = write_broken(tmp_path / "videos")
    write(tmp_path / "videos" / "deep" / "whole.mp4", count=4)
    output = tmp_path / "found.safetensors"
    command = ["embed", str(task / "my-task"), str(tmp_path / "videos"), "--output", str(output), "--workers", "0"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "2 videos embedded, 3 skipped" in printed.out
    skipped = re.findall(r"skipped: .*?(\w+)\.mp4", printed.err)
    assert skipped == ["empty", "note", "truncated"]
    assert load_file(output)["embeddings"].shape == (2, 32)
    expected = ["path", str(tmp_path / "videos" / "deep" / "whole.mp4"), str(broken["one"])]
    assert (tmp_path / "found.csv").read_text().splitlines() == expected
    (tmp_path / "videos" / "deep" / "whole.mp4").unlink()
    broken["one"].unlink()
    output.unlink()
    (tmp_path / "found.csv").unlink()
    assert main(command) == 1
    assert re.search(r"peft-aim embed: None of the 3 videos can be read. .*empty.mp4", capsys.readouterr().err)


def test_videos_are_found_in_all_that_is_given(tmp_path):
    write_classes(tmp_path / "videos", val=1)
    frames = tmp_path / "videos" / "extra" / "frames"
    frames.mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (8, 8)).save(frames / f"{i}.png")
    (tmp_path / "videos" / "notes.txt").write_text("x")
    (tmp_path / "list.txt").write_text("videos/val/dark/0.mp4 night\n")
    every = given_videos(tmp_path / "videos")
    assert len(every) == 9 and {video.label for video in every} == {""} and frames in [video.path for video in every]
    url = "https://example.org/a.mp4"
    several = given_videos([url, frames, tmp_path / "list.txt"])
    assert [(str(video.path), video.label) for video in several] == [
        (url, ""),
        (str(frames), ""),
        (str(tmp_path / "videos/val/dark/0.mp4"), "night"),
    ]
    assert [video.label for video in given_videos(tmp_path / "videos", "val")] == ["dark", "light"]


def test_inputs_without_videos_are_rejected(tmp_path):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "empty" / "deep" / "note.txt").write_text("x")
    message = (
        r"No videos found in .*/empty and its subfolders. Left out: 1 file of other kinds \(.txt\). Check the path."
    )
    with pytest.raises(ValueError, match=message):
        given_videos(tmp_path / "empty")
    with pytest.raises(
        ValueError, match=r"no-such does not exist. Give videos, a folder of videos, or a list or table"
    ):
        given_videos("no-such")
    with pytest.raises(ValueError, match=r"a.mp4 is a video, which has no split 'val'. Leave the split out"):
        given_videos(write(tmp_path / "a.mp4"), "val")


def test_the_output_is_checked_first(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["embed", "no-such-adapter", "no-such-video", "--output", str(tmp_path / "file" / "out")]) == 1
    assert re.search("peft-aim embed: The output .*/file is a file. Give a folder.", capsys.readouterr().err)


def test_vectors_that_are_not_finite_are_an_error(task, monkeypatch):
    from peft_aim.video import embedding

    def broken(*args: object) -> object:
        loaded = load_adapters(*args)
        loaded.model.base_model.model.vit.embeddings.cls_token.data[:] = torch.nan
        return loaded

    monkeypatch.setattr(embedding, "load_adapters", broken)
    message = r"The features of 1 of 1 videos, .*1.mp4 for example, are NaN or infinite.*cls_token for example"
    with pytest.raises(ValueError, match=message):
        embed(task / "my-task", task / "videos" / "val" / "dark" / "1.mp4", workers=0)


def test_nothing_is_overwritten(task, tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("path,label\n")
    command = ["embed", str(task / "my-task"), str(task / "videos"), "--output"]
    for output, reason in (
        ("mine", "mine.csv exists. Give another name, or remove it."),
        ("mine.safetensors", "mine.csv exists. Give another name, or remove it."),
        ("", "is a folder. Give the name of the files in it, such as"),
    ):
        assert main([*command, str(tmp_path / output)]) == 1
        assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]


def test_segments_are_in_the_table_by_their_times(task, tmp_path):
    video = task / "videos" / "val" / "dark" / "1.mp4"
    (tmp_path / "list.csv").write_text(f"path,label,start,end\n{video},dark,0,0.2\n{video},dark,0.1,\n")
    found = embed(task / "my-task", tmp_path / "list.csv", tmp_path / "out", workers=0)
    table = (tmp_path / "out.csv").read_text().splitlines()
    assert table == ["path,label,start,end", f"{video},dark,0.0,0.2", f"{video},dark,0.1,"]
    assert found.paths == [str(video)] * 2 and not np.allclose(*found.vectors)


def test_wrong_arguments_are_errors(task):
    with pytest.raises(ValueError, match="No videos are given. Give videos"):
        embed(task / "my-task", [])
    with pytest.raises(ValueError, match=r"views=\(0, 1\) is not positive"):
        embed(task / "my-task", task / "videos", views=(0, 1))
