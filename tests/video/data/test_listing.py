"""Finding videos in folders, lists and tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from videos import write, write_broken

from peft_aim.video.data.clips import scan
from peft_aim.video.data.data import Data
from peft_aim.video.data.listing import Labeled, class_names, find_videos, has_split, indexed
from peft_aim.video.recipe import Recipe


def test_folders_contain_splits_of_classes(folder):
    (folder / "train" / "light" / "readme.txt").write_text("no video")
    (folder / "train" / ".cache").mkdir()
    data = Data.find(folder)
    assert data.classes == ["dark", "light"]
    assert [label for _, label in data.train] == [0, 0, 0, 1, 1, 1]
    assert [path.relative_to(folder).as_posix() for path, _ in data.val][:2] == ["val/dark/0.mp4", "val/dark/1.mp4"]


def test_numeric_folder_names_are_class_names(tmp_path):
    for name in ("1", "2", "03"):
        write(tmp_path / "train" / name / "a.mp4", count=2)
    data = Data.find(tmp_path)
    assert data.classes == ["03", "1", "2"] and [label for _, label in data.train] == [0, 1, 2]


def test_lists_have_a_path_and_a_label_per_line(tmp_path):
    (tmp_path / "train.txt").write_text("a/x y.mp4 2\n\nb.mp4 0\n")
    assert find_videos(tmp_path / "train.txt") == [
        Labeled(tmp_path / "a/x y.mp4", "2"),
        Labeled(tmp_path / "b.mp4", "0"),
    ]
    assert find_videos(tmp_path / "train.txt", root="/videos")[1] == Labeled(Path("/videos/b.mp4"), "0")
    (tmp_path / "tabs.txt").write_text("a.mp4\tturn left\n")
    assert find_videos(tmp_path / "tabs.txt")[0].label == "turn left"


def test_tables_have_columns_and_optional_splits(tmp_path):
    table = tmp_path / "all.csv"
    table.write_text("Label,path,split\nrun,a.mp4,train\nwalk,b.mp4,train\nrun,c.mp4,val\n")
    data = Data.find(table)
    assert data.classes == ["run", "walk"]
    assert data.train == [(tmp_path / "a.mp4", 0), (tmp_path / "b.mp4", 1)]
    assert data.val == [(tmp_path / "c.mp4", 0)]
    assert has_split(table, "val") and not has_split(table, "test")
    with pytest.raises(ValueError, match="No videos found in .*all.csv, split 'test'"):
        find_videos(table, "test")


def test_validation_videos_can_have_their_own_list(tmp_path):
    (tmp_path / "train.txt").write_text("a.mp4 0\nb.mp4 1\n")
    (tmp_path / "val.txt").write_text("c.mp4 1\n")
    data = Data.find(tmp_path / "train.txt", val=tmp_path / "val.txt", classes=["run", "walk"])
    assert data.classes == ["run", "walk"] and data.val == [(tmp_path / "c.mp4", 1)]
    assert Data.find(tmp_path / "train.txt").classes == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "only-a-path.mp4\n", "Line 1 of .*a.txt is 'only-a-path.mp4'. Write each line as: path label"),
        ("a.csv", "file,what\na.mp4,run\n", r"has the columns \['file', 'what'\]. .*label or class"),
        ("a.csv", "path,label\na.mp4,\n", "Line 2 of .*a.csv has no path or no label"),
        ("a.txt", "\n", "No videos found in"),
        ("a.txt", "caf\udce9.mp4 1\n", "a.txt is not valid UTF-8"),
    ],
)
def test_lines_that_cannot_be_parsed_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        find_videos(tmp_path / name)


def test_wrong_labels_and_sources_are_rejected(tmp_path):
    videos = [Labeled(Path("a.mp4"), "run"), Labeled(Path("b.mp4"), "fly")]
    with pytest.raises(
        ValueError, match=r"b.mp4 has the label 'fly', which is not one of the classes \['run', 'walk'\]"
    ):
        indexed(videos, ["run", "walk"])
    with pytest.raises(ValueError, match="There is only one class, 'run'. Give videos of at least two"):
        class_names(videos[:1])
    with pytest.raises(ValueError, match="nowhere does not exist. Give a folder of videos, or a list"):
        find_videos(tmp_path / "nowhere")


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


def test_broken_empty_and_short_videos_are_found(folder, capsys):
    broken = write_broken(folder / "train" / "dark")
    found = scan(Data.find(folder).train, min_frames=2, workers=2, what="train")
    assert found.keys() == {*broken.values()}
    assert "one.mp4 has 1 frame, fewer than min_frames=2" in found[broken["one"]]
    assert "Checking train" in capsys.readouterr().err
    data, reasons = Data.find(folder).without_broken(Recipe(workers=0))
    assert len(data.train) == 6 and len(data.val) == 4 and len(reasons) == 4
    (folder / "val" / "dark" / "9.mp4").write_bytes(b"")
    data, reasons = Data.find(folder).without_broken(Recipe(workers=0))
    assert len(data.val) == 5 and len(reasons) == 5  # broken validation videos stay, since evaluation counts them


def test_folders_with_only_broken_videos_are_rejected(folder):
    for path in (folder / "train").rglob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 6 train videos can be read"):
        Data.find(folder).without_broken(Recipe(workers=0))
