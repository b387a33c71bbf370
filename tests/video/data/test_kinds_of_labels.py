"""Several labels per video, and numbers, in lists, tables and JSON."""

from __future__ import annotations

import json

import pytest

from peft_aim.video.data import Data, find_videos, indexed, read_labels
from peft_aim.video.data.listing import VideoSource

MULTI, SINGLE = "multi_label_classification", "single_label_classification"


def written(folder, text, name="all.csv"):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("all.txt", "a.mp4 run|wave\nb.mp4 stop\nc.mp4 |\n"),
        ("all.txt", "a.mp4 run\nb.mp4 stop\na.mp4 wave\nc.mp4 |\n"),
        ("all.csv", "path,label\na.mp4,run|wave\nb.mp4,stop\nc.mp4,|\n"),
        ("all.csv", "a.mp4,run|wave\nb.mp4,stop\nc.mp4,|\n"),
        ("all.json", '{"a.mp4": ["run", "wave"], "b.mp4": "stop", "c.mp4": []}'),
    ],
)
def test_videos_with_several_labels_make_it_a_task_of_several_classes(tmp_path, name, text):
    data = Data.find(written(tmp_path, text, name))
    assert (data.classes, data.problem_type) == (["run", "stop", "wave"], MULTI)
    labels = {video.path.name: video.label for video in data.train}
    assert labels == {"a.mp4": frozenset({0, 2}), "b.mp4": frozenset({1}), "c.mp4": frozenset()}
    assert f"1 of 3 videos have several labels, {tmp_path}/a.mp4 for example, so this is" in data.summary[-1]


def test_one_class_per_video_remains_the_default_and_can_be_demanded(tmp_path):
    assert Data.find(written(tmp_path, "a.mp4 run\nb.mp4 stop\n")).problem_type == SINGLE
    several = written(tmp_path, "a.mp4 run|stop\nb.mp4 stop\n")
    with pytest.raises(
        ValueError, match=r"a.mp4 has the labels \['run', 'stop'\], but the adapter predicts one class"
    ):
        Data.find(several, problem_type=SINGLE)
    for i in range(2):
        (tmp_path / "train" / f"a|{i}").mkdir(parents=True)
        (tmp_path / "train" / f"a|{i}" / "x.mp4").touch()
    assert Data.find(tmp_path).classes == ["a|0", "a|1"]  # names of folders are one class each


def test_several_labels_may_be_indices_of_given_names(tmp_path):
    data = Data.find(written(tmp_path, "a.mp4 0|2\nb.mp4 1\n"), classes=["x", "y", "z"])
    assert [video.label for video in data.train] == [frozenset({0, 2}), frozenset({1})]
    with pytest.raises(ValueError, match="b.mp4 has the label '3', which is not one of the classes"):
        Data.find(written(tmp_path, "a.mp4 0|2\nb.mp4 1|3\n"), classes=["x", "y", "z"])


def test_numbers_are_labels_if_asked_for(tmp_path):
    table = written(tmp_path, "path,label,split\na.mp4,0.5,train\nb.mp4,-2e1,train\nc.mp4,3,val\n")
    data = Data.find(table, problem_type="regression")
    assert data.classes == ["value"] and [video.label for video in data.train] == [(0.5,), (-20.0,)]
    assert data.val[0].label == (3.0,) and "2 videos of 2 numbers in train" in data.summary[0]
    assert Data.find(written(tmp_path, "a.mp4,0.5\nb.mp4,3\n")).problem_type == SINGLE
    pairs = written(tmp_path, json.dumps({"a.mp4": [0.5, 1], "b.mp4": "2|3"}), "all.json")
    data = Data.find(pairs, classes=["x", "y"], problem_type="regression")
    assert data.classes == ["x", "y"] and [video.label for video in data.train] == [(0.5, 1.0), (2.0, 3.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4,1\nb.mp4,run\n", r"b.mp4 has the label 'run', which is not a number: 1 of the labels are none, 'run'"),
        ("a.mp4,1\nb.mp4,nan\n", "b.mp4 has the label 'nan', which is not a number"),
        ("a.mp4,1\nb.mp4,1|2\n", r"b.mp4 has 2 numbers as its label, '1\|2', but 1 are needed"),
    ],
)
def test_labels_of_several_kinds_are_rejected(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        Data.find(written(tmp_path, f"path,label\n{text}"), problem_type="regression")


def test_an_adapter_of_several_classes_is_evaluated_on_single_labels_too(tmp_path):
    listing = VideoSource(written(tmp_path, "a.mp4 run\nb.mp4 stop\n", "all.txt")).listing()
    labeled = indexed(read_labels(listing, MULTI), ["run", "stop"], problem_type=MULTI)
    assert [video.label for video in labeled] == [frozenset({0}), frozenset({1})]
    assert [video.label for video in find_videos(tmp_path / "all.txt")] == ["run", "stop"]
