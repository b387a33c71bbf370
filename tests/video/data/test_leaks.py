"""Videos that are given twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from peft_aim.__main__ import main
from peft_aim.video.data import Data, notes_on, notes_on_evaluation
from peft_aim.video.data.leaks import notes_on_leaks
from peft_aim.video.data.listing import Sample, VideoSource


def copy(source: Path, target: Path) -> None:
    shutil.copy(source, target)


def notes(folder: Path, split: str) -> list[str]:
    source = VideoSource(folder)
    return notes_on_evaluation(source.listing(split).videos, source, split)


def test_different_videos_are_not_noted(folder):
    assert notes_on(Data.find(folder)) == []


@pytest.mark.parametrize("how", [copy, lambda source, target: target.symlink_to(source)])
def test_videos_in_both_splits_are_noted_under_any_name(folder, how):
    how(folder / "train/dark/0.mp4", folder / "val/dark/x.mp4")
    assert notes_on(Data.find(folder)) == [
        "1 of the 5 val videos is also in the train split (by content), val/dark/x.mp4 and train/dark/0.mp4 for "
        "example: the results are too good. Leave them out of one split."
    ]


def test_paths_in_both_lists_are_noted(folder):
    (folder / "train.txt").write_text("train/dark/0.mp4 dark\ntrain/light/0.mp4 light\n")
    data = Data.find(folder / "train.txt", val=folder / "train.txt")
    path = folder / "train/dark/0.mp4"
    assert f"2 of the 2 val videos are also in the train split (by content), {path} for example" in notes_on(data)[1]


def test_videos_that_are_given_twice_are_noted(folder):
    shutil.copy(folder / "train/dark/0.mp4", folder / "train/dark/x.mp4")
    assert notes_on(Data.find(folder)) == [
        "1 of the 7 train videos is given twice (by content), 0.mp4 and x.mp4 for example. Leave out the copies."
    ]


def test_copies_with_another_label_are_noted(folder):
    shutil.copy(folder / "train/dark/0.mp4", folder / "train/light/x.mp4")
    assert notes_on(Data.find(folder)) == [
        "1 of the 7 train videos is given twice with different labels (by content), dark/0.mp4 and light/x.mp4 as "
        "'dark' and 'light' for example. Correct the labels."
    ]


def test_folders_of_frames_are_compared_by_their_images(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.jpg").write_bytes(content)
    train, val = [Sample(tmp_path / "a", "x")], [Sample(tmp_path / "b", "x"), Sample(tmp_path / "c", "x")]
    assert notes_on_leaks(train, val)[0].startswith(
        "1 of the 2 val videos is also in the train split (by content), b and a"
    )


def test_large_files_differ_by_their_ends(tmp_path):
    for name, end in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(bytes(200_000) + end)
    val = [Sample(tmp_path / "b", "x"), Sample(tmp_path / "c", "x")]
    assert notes_on_leaks([Sample(tmp_path / "a", "x")], val)[0].startswith("1 of the 2 val videos")


def test_large_files_differ_between_their_ends(tmp_path):
    for name, middle in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(bytes(100_000) + middle + bytes(100_000))
    videos = [Sample(tmp_path / name, "x") for name in "abc"]
    assert notes_on_leaks(videos[:1], videos[2:]) == []
    assert notes_on_leaks(videos[:1], videos[1:])[0].startswith("1 of the 2 val videos is also in the train split")


def test_folders_of_frames_differ_between_their_ends(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.jpg").write_text(name if i == 1 else "same")
    assert notes_on_leaks([Sample(tmp_path / "a", "x")], [Sample(tmp_path / "b", "x")]) == []


def test_missing_and_empty_files_are_left_to_others(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    videos = [Sample(tmp_path / name, "x") for name in ("empty", "gone", "folder")]
    assert notes_on_leaks(videos, videos) == []


def test_evaluation_is_compared_with_the_train_split(folder):
    shutil.copy(folder / "train/dark/0.mp4", folder / "test.mp4")
    shutil.copy(folder / "test.mp4", folder / "val/dark/x.mp4")
    assert "1 of the 5 val videos is also in the train split" in notes(folder, "val")[0]
    assert notes(folder, "validation")[0].startswith("1 of the 5 validation videos is also in the train split")
    assert notes(folder, "train") == notes(folder, "Training") == []
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    assert notes(folder, "val") == []


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({"trainlist01.txt": "x/a.avi 1\n", "testlist01.txt": "x/b.avi\n"}, "trainlist01.txt"),
        ({"x_test_split1.txt": "a.avi 1\nb.avi 2\n"}, "."),
        ({"train.json": '{"a.avi": "x"}', "validation.json": '{"b.avi": "x"}'}, "train.json"),
        ({"train.json": '[{"id": "a", "template": "x"}]', "val.json": '[{"id": "b", "template": "x"}]'}, "train.json"),
        ({"all.jsonl": '{"id": "a", "label": 1, "set": "train"}\n{"id": "b", "label": 1, "set": "val"}'}, "all.jsonl"),
    ],
)
def test_evaluation_on_a_data_set_is_compared_with_its_train_split(tmp_path, files, source):
    (tmp_path / "x").mkdir()
    for name, content in {**files, "x/a.avi": "same", "x/b.avi": "same", "a.avi": "same", "b.avi": "same"}.items():
        (tmp_path / name).write_text(content)
    for split in ("val", "validation"):
        assert notes(tmp_path / source, split)[0].startswith(f"1 of the 1 {split} videos is also in the train split")


def test_commands_print_what_they_read_and_note_leaks(folder, tmp_path, image_model, capsys):
    shutil.copy(folder / "train/dark/0.mp4", folder / "val/dark/x.mp4")
    (folder / "train/dark/readme.txt").touch()
    options = ["--frames", "2", "--epochs", "1", "--batch-size", "4", "--workers", "0", "--views", "1x1", "--model"]
    assert main(["train", str(folder), "--output", str(tmp_path / "out"), *options, image_model]) == 0
    printed = capsys.readouterr().out
    assert "6 videos of 2 classes in train from videos (a folder for each class)" in printed
    assert "Left out: 1 file of other kinds (.txt)" in printed
    assert "5 videos of 2 classes in val from videos (a folder for each class)" in printed
    assert "Note: 1 of the 5 val videos is also in the train split" in printed
    assert "1 of the 5 val" in json.loads((tmp_path / "out/report.json").read_text())["notes"][0]
    assert (
        main(["evaluate", str(tmp_path / "out"), str(folder), "--output", str(tmp_path / "e"), "--workers", "0"]) == 0
    )
    printed = capsys.readouterr().out
    assert "5 videos of 2 classes in val from videos" in printed and "Note: 1 of the 5 val videos" in printed
    assert "1 of the 5 val" in json.loads((tmp_path / "e/evaluation.json").read_text())["notes"][0]
