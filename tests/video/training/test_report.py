"""The report lists what was noticed about the videos, in training and in evaluation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.containers.forms import Encoded
from benchmarks.containers.numbered import numbered
from peft_aim.video.data.clips import EvaluationClips, TrainingClips
from peft_aim.video.data.data import Data
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.run import train

RECIPE = Recipe(frames=2, epochs=2, batch_size=4, workers=0, keep="last")


def write_damaged(path: Path) -> Path:
    """Write a video whose second half is noise, so that clips from there have to make do with other frames."""
    Encoded(flags={"movflags": "faststart"})(numbered(60), path)
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + np.random.default_rng(0).bytes(len(data) - half))
    return path


@pytest.mark.parametrize("check", [False, True])
def test_damaged_videos_count_once_however_often_they_are_read(folder, tmp_path, image_model, check):
    """Each random clip has other frames that are damaged, and so another message."""
    paths = [write_damaged(folder / split / "dark" / "damaged.mp4") for split in ("train", "val")]
    _, report = train(Data.find(folder), image_model, tmp_path / "out", Recipe(**{**vars(RECIPE), "epochs": 6}), check)
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["damaged"] == report.damaged and len(report.damaged) == 2
    assert all(f"frames of {path} cannot" in text for path, text in zip(paths, report.damaged, strict=True))
    assert re.search(
        r"\nFiles skipped: 0\nVideos damaged: 2\n  \d+ of \d+ frames of .*\n  \d+ of \d+ frames of .*\n", str(report)
    )
    assert len(report.evaluation.damaged) == 1 and not report.evaluation.skipped
    evaluated = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluated["damaged"] == report.evaluation.damaged and evaluated["skipped"] == []


def test_hdr_videos_of_training_and_evaluation_are_noted_once(folder, tmp_path, image_model, monkeypatch):
    def in_hdr(read):
        return lambda clips, i: (item := read(clips, i)) | {"hdr": item["path"] if "dark/0" in item["path"] else ""}

    for clips in (TrainingClips, EvaluationClips):
        monkeypatch.setattr(clips, "__getitem__", in_hdr(clips.__getitem__))
    _, report = train(Data.find(folder), image_model, tmp_path / "out", RECIPE)
    first = folder / "train" / "dark" / "0.mp4"
    assert str(report).count(f"Note: 2 videos are HDR (PQ or HLG), {first} for example") == 1
    assert str(report).count("HDR (") == 1


def test_videos_that_are_neither_are_not_mentioned(folder, tmp_path, image_model):
    _, report = train(Data.find(folder), image_model, tmp_path / "out", RECIPE)
    assert "damaged" not in str(report) and "HDR" not in str(report)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["video"]["results"]["val"]["videos"] == 4 and config["inference_mode"]
    assert "| val | 4 | 1 x 1 |" in (tmp_path / "out" / "README.md").read_text()
