"""The videos of a task: splits, classes and broken videos."""

from __future__ import annotations

import shutil

import pytest
from videos import write_broken

from benchmarks.containers.forms import Encoded
from benchmarks.containers.numbered import numbered
from peft_aim.video.data.clips import scan
from peft_aim.video.data.data import Data, notes_on_evaluation
from peft_aim.video.data.listing import Sample, VideoSource
from peft_aim.video.recipe import Recipe


def test_folders_contain_splits_of_classes(folder):
    (folder / "train" / "light" / "readme.txt").write_text("no video")
    (folder / "train" / ".cache").mkdir()
    data = Data.find(folder)
    assert data.classes == ["dark", "light"]
    assert [video.label for video in data.train] == [0, 0, 0, 1, 1, 1]
    assert [video.path for video in data.val[:2]] == [folder / "val/dark/0.mp4", folder / "val/dark/1.mp4"]


def test_validation_videos_can_have_their_own_list(tmp_path):
    (tmp_path / "train.txt").write_text("a.mp4 0\nb.mp4 1\n")
    (tmp_path / "val.txt").write_text("c.mp4 1\n")
    data = Data.find(tmp_path / "train.txt", val=tmp_path / "val.txt", classes=["run", "walk"])
    assert data.classes == ["run", "walk"] and data.val == [Sample(tmp_path / "c.mp4", 1)]
    assert Data.find(tmp_path / "train.txt").classes == ["0", "1"]


def test_folders_with_wrong_classes_or_splits_are_rejected(folder):
    (folder / "val" / "dim").mkdir()
    shutil.copy(folder / "val" / "dark" / "0.mp4", folder / "val" / "dim")
    with pytest.raises(
        ValueError, match=r"0.mp4 has the label 'dim', which is not one of the classes \['dark', 'light'\]"
    ):
        Data.find(folder)
    shutil.rmtree(folder / "train")
    with pytest.raises(ValueError, match=r"has no folders train/<class>. .*train/<class>/\*.mp4"):
        Data.find(folder)


def test_a_table_for_validation_gives_its_val_split(tmp_path):
    (tmp_path / "train.txt").write_text("a.mp4 run\nb.mp4 walk\n")
    (tmp_path / "all.csv").write_text("path,label,split\na.mp4,run,train\nc.mp4,walk,val\nd.mp4,walk,test\n")
    assert Data.find(tmp_path / "train.txt", val=tmp_path / "all.csv").val == [Sample(tmp_path / "c.mp4", 1)]


def test_a_folder_for_validation_has_classes_or_a_val_split(folder):
    assert len(Data.find(folder, val=folder / "val").val) == len(Data.find(folder, val=folder).val) == 4


def test_what_is_read_is_summarized_by_split(tmp_path):
    table = tmp_path / "videos.csv"
    table.write_text("path,tag,set\na.mp4,run,train\nb.mp4,walk,Train\nc.mp4,run,validation\n")
    for name in "abc":
        (tmp_path / f"{name}.mp4").touch()
    assert Data.find(table).summary == (
        "2 videos of 2 classes in train from videos.csv (column 'tag' as label, 'set' as split: train 2, val 1)",
        "1 video of 1 class in val from videos.csv (column 'tag' as label, 'set' as split: train 2, val 1)",
    )


def test_broken_empty_and_short_videos_are_found(folder, capsys):
    broken = write_broken(folder / "train" / "dark")
    found = scan(Data.find(folder).train, min_frames=2, fps=12, workers=2, what="train")
    assert {path for path, remarks in found.items() if remarks["skipped"]} == {*map(str, broken.values())}
    assert "one.mp4 has 1 frame, fewer than min_frames=2" in found[str(broken["one"])]["skipped"]
    assert "Checking train" in capsys.readouterr().err
    data, remarks = Data.find(folder).without_broken(Recipe(workers=0))
    assert len(data.train) == 6 and len(data.val) == 4 and len(remarks.skipped) == 4
    (folder / "val" / "dark" / "9.mp4").write_bytes(b"")
    data, remarks = Data.find(folder).without_broken(Recipe(workers=0))
    assert len(data.val) == 5 and len(remarks.skipped) == 5  # evaluation counts them


def test_damaged_videos_are_found(folder):
    path = folder / "train" / "dark" / "half.mp4"
    Encoded(flags={"movflags": "faststart"})(numbered(60), path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    data, remarks = Data.find(folder).without_broken(Recipe(workers=0))
    assert len(data.train) == 7 and not remarks.skipped  # what is left of it is a video
    (message,) = remarks.damaged
    assert f"frames of {path} cannot be decoded, the first at" in message


def test_folders_with_only_broken_videos_are_rejected(folder):
    for path in (folder / "train").rglob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 6 train videos can be read"):
        Data.find(folder).without_broken(Recipe(workers=0))


def test_the_fingerprint_tells_the_splits_apart(tmp_path):
    a, b, c = (Sample(tmp_path / name, 0) for name in "abc")
    prints = {
        data.fingerprint for data in (Data(["x"], [a], [b, c]), Data(["x"], [a, b], [c]), Data(["y"], [a, b], [c]))
    }
    assert len(prints) == 3


def test_a_source_is_read_once(tmp_path, monkeypatch):
    (tmp_path / "all.csv").write_text("path,label,split\na.mp4,run,train\nb.mp4,walk,train\nc.mp4,run,val\n")
    texts = []
    monkeypatch.setattr(
        "peft_aim.video.data.listing.find.read_text", lambda path: texts.append(path) or path.read_text()
    )
    Data.find(tmp_path / "all.csv")
    source = VideoSource(tmp_path / "all.csv")
    notes_on_evaluation(source.listing("val").videos, source, "val")
    assert texts == [tmp_path / "all.csv"] * 2
