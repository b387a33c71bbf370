"""Clips of training and evaluation."""

from __future__ import annotations

import weakref

import pytest
import torch
from videos import write

from benchmarks.containers.forms import Encoded
from benchmarks.containers.numbered import numbered
from peft_aim.video.data import EvaluationClips, ForTraining, Preprocessing, Sample, TrainingClips, Views
from peft_aim.video.data.clips import IGNORED
from peft_aim.video.data.decode.picture import Pictures
from peft_aim.video.recipe import Recipe

GREY = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)
RECIPE = Recipe(frames=12, batch_size=1)


def training(path):
    return TrainingClips([Sample(path, 0)], RECIPE, ForTraining(GREY, RECIPE, ["a", "b"]))


def evaluation(path):
    return EvaluationClips([Sample(path, 0)], Views(12, None, 1, 3, GREY), min_frames=2, fps=12)


@pytest.fixture
def at_once(monkeypatch):
    """The number of frames of full size that are in memory, whenever one is added."""
    alive, counts, of = set(), [], Pictures.of

    def tracked(self, frame):
        picture, number = of(self, frame), len(counts)
        alive.add(number)
        counts.append(len(alive))
        weakref.finalize(picture, alive.discard, number)
        return picture

    monkeypatch.setattr(Pictures, "of", tracked)
    return counts


@pytest.mark.parametrize("kind", [training, evaluation])
@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_frames_are_resized_as_they_are_decoded(tmp_path, at_once, kind, suffix):
    path = tmp_path / f"a{suffix}"
    Encoded()(numbered(12), path)
    assert kind(path)[0]["clips"].shape[-4:] == (12, 3, 16, 16)
    assert len(at_once) == 12 and max(at_once) <= 2


@pytest.mark.parametrize("kind", [training, evaluation])
def test_videos_that_cannot_be_read_are_black_and_ignored(tmp_path, kind):
    (tmp_path / "a.mp4").write_bytes(b"")
    item, black = kind(tmp_path / "a.mp4")[0], kind(write(tmp_path / "b.mp4"))
    assert item["labels"] == IGNORED and item["clips"].shape == black[0]["clips"].shape
    assert torch.equal(item["clips"], torch.full_like(item["clips"], -1.0))
    assert item["skipped"].startswith(f"{tmp_path / 'a.mp4'} cannot be read as a video: ")


@pytest.mark.parametrize("kind", [training, evaluation])
def test_clips_tell_of_damage_and_hdr(tmp_path, kind, monkeypatch):
    path = tmp_path / "a.mp4"
    Encoded(flags={"movflags": "faststart"})(numbered(60), path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    monkeypatch.setattr("peft_aim.video.data.decode.plain.is_hdr", lambda stream: True)
    item = kind(path)[0]
    assert f"of 60 frames of {path} cannot be decoded" in str(item["damaged"])
    assert str(path) in str(item["hdr"]) and item["labels"] == 0
