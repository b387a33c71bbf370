"""The report lists what was noticed about the videos, in training and in evaluation."""

from __future__ import annotations

import json

from peft_aim.video.data.clips import EvaluationClips, TrainingClips
from peft_aim.video.data.data import Data
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.run import train

RECIPE = Recipe(frames=2, epochs=2, batch_size=4, workers=0, keep="last")


def noticing(read, notices: dict[str, str]):
    """Return a way of reading clips that notices something about the first two videos."""
    return lambda clips, i: read(clips, i) | (notices if i < 2 else {})


def test_damaged_and_hdr_videos_of_training_and_evaluation_are_reported_once(
    folder, tmp_path, image_model, monkeypatch
):
    for clips, split in ((TrainingClips, "train"), (EvaluationClips, "val")):
        notices = {"damaged": f"{split}.mp4 is damaged.", "hdr": f"{split}.mov"}
        monkeypatch.setattr(clips, "__getitem__", noticing(clips.__getitem__, notices))
    _, report = train(Data.find(folder), image_model, tmp_path / "out", RECIPE)
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["damaged"] == report.damaged == ["train.mp4 is damaged.", "val.mp4 is damaged."]
    assert saved["skipped"] == [] and report.evaluation.damaged == ["val.mp4 is damaged."]
    printed = str(report)
    assert "Files skipped: 0\nVideos damaged: 2\n  train.mp4 is damaged.\n  val.mp4 is damaged.\n" in printed
    assert printed.count("Note: 2 videos are HDR (PQ or HLG), train.mov for example") == printed.count("HDR (") == 1


def test_videos_that_are_neither_are_not_mentioned(folder, tmp_path, image_model):
    _, report = train(Data.find(folder), image_model, tmp_path / "out", RECIPE)
    assert "damaged" not in str(report) and "HDR" not in str(report)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["video"]["results"]["val"]["videos"] == 4 and config["inference_mode"]
    assert "| val | 4 | 1 x 1 |" in (tmp_path / "out" / "README.md").read_text()
