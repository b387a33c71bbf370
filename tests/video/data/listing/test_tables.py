"""Tables in all dialects."""

from __future__ import annotations

from pathlib import Path

import pytest

from peft_aim.video.data.data import Data
from peft_aim.video.data.listing import Sample, find_videos, has_split


def written(folder: Path, text: str, name: str = "all.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def made(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return [root / name for name in names]


def test_tables_have_columns_and_optional_splits(tmp_path):
    table = written(tmp_path, "Label,path,split\nrun,a.mp4,train\nwalk,b.mp4,train\nrun,c.mp4,val\n")
    data = Data.find(table)
    assert data.classes == ["run", "walk"]
    assert data.train == [Sample(tmp_path / "a.mp4", 0), Sample(tmp_path / "b.mp4", 1)]
    assert data.val == [Sample(tmp_path / "c.mp4", 0)]
    assert has_split(table, "val") and not has_split(table, "test")
    with pytest.raises(ValueError, match="No videos found in .*all.csv, split 'test'. It has the splits train, val"):
        find_videos(table, "test")


@pytest.mark.parametrize("column", ["mode", "data_type", "phase", "part of the data"])
def test_a_column_of_nothing_but_splits_is_that_of_splits(tmp_path, column):
    table = written(tmp_path, f"path,label,{column}\na.mp4,run,Train\nb.mp4,walk,train\nc.mp4,run,valid\n")
    data = Data.find(table)
    assert len(data.train) == 2 and data.val == [Sample(tmp_path / "c.mp4", 0)]
    assert f"{column.replace(' ', '_')!r} as split" in data.summary[0]


def test_names_of_classes_count_rather_than_their_indices(tmp_path):
    table = written(tmp_path, "classname,path,label\nrun,a.mp4,0\nwalk,b.mp4,1\n")
    assert [video.label for video in find_videos(table)] == ["run", "walk"]
    table = written(tmp_path, "path,label,class\na.mp4,0,run\nb.mp4,1,walk\n")
    assert [video.label for video in find_videos(table)] == ["run", "walk"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["all.csv", "all.tsv", "all.txt"])
def test_the_separator_is_recognized(tmp_path, separator, name):
    text = "video_name,tag\na b.mp4,turn left\nc.mp4,stop\n".replace(",", separator)
    assert find_videos(written(tmp_path, text, name)) == [
        Sample(tmp_path / "a b.mp4", "turn left"),
        Sample(tmp_path / "c.mp4", "stop"),
    ]


@pytest.mark.parametrize("column", ["path", "clip_path", "filepath", "File Name", "video_id", "ID", "youtube_id"])
@pytest.mark.parametrize("label", ["label", "tag", "Class Name", "ACTION"])
def test_columns_have_many_names(tmp_path, column, label):
    table = written(tmp_path, f"{column},duration,{label}\na.mp4,3.5,run\n")
    assert find_videos(table) == [Sample(tmp_path / "a.mp4", "run")]


@pytest.mark.parametrize("column", ["split", "set", "Subset", "partition"])
@pytest.mark.parametrize("val", ["val", "Validation", "VALID"])
def test_val_rows_are_never_trained_on(tmp_path, column, val):
    table = written(tmp_path, f"path,label,{column}\na.mp4,run,TRAINING\nb.mp4,walk,{val}\n")
    assert [video.label for video in find_videos(table, "train")] == ["run"]
    assert [video.label for video in find_videos(table, "val")] == ["walk"]


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_tables_need_no_header(tmp_path, separator):
    table = written(tmp_path, "34870,Drumming Fingers\n56557,Sliding\n".replace(",", separator))
    assert find_videos(table) == [
        Sample(tmp_path / "34870", "Drumming Fingers"),
        Sample(tmp_path / "56557", "Sliding"),
    ]


def test_videos_are_found_in_folders_of_the_file_label_and_split(tmp_path):
    paths = made(tmp_path, "train/a.avi", "turn left/b.avi", "turn_left/c.avi", "train/turn left/d.avi", "test/e.avi")
    rows = "".join(
        f"{path.name},turn left,{split}\n" for path, split in zip(paths, [*["train"] * 4, "test"], strict=True)
    )
    table = written(tmp_path, f"video_name,tag,split\n{rows}", "train.csv")
    assert [video.path for video in find_videos(table)] == paths


def test_paths_may_have_other_slashes(tmp_path):
    paths = made(tmp_path, "train/run/a.avi", "train/run/b.avi")
    table = written(tmp_path, "clip_path,label\n/train/run/a.avi,run\ntrain\\run\\b.avi,run\n")
    assert [video.path for video in find_videos(table)] == paths


def test_paths_are_those_on_disk_however_they_are_composed(tmp_path):
    paths = made(tmp_path, "re\u0301ception/re\u0301.mp4")
    assert find_videos(written(tmp_path, "path,label\nr\u00e9ception/r\u00e9.mp4,re\u0301\n")) == [
        Sample(paths[0], "r\u00e9")
    ]


def test_clips_of_kinetics_are_named_by_their_times(tmp_path):
    paths = made(
        tmp_path,
        *("abseiling/-3B32lodo2M_000059_000069.mp4", "-7kbO0v4hag_000107_000117.mkv", "air_drumming/_1b.mp4"),
        "train/xyz_000000_000010.mp4",
    )
    table = written(
        tmp_path,
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        "abseiling,-3B32lodo2M,59,69,train,0\nabseiling,-7kbO0v4hag,107,117,train,0\n"
        '"air drumming",_1b,0.0,10.0,train,0\n"air drumming",xyz,0,10,train,1\nabseiling,gone,2,12,train,1\n'
        "abseiling,other,2,12,validate,1\n",
    )
    videos = find_videos(table, "train")
    assert [video.path for video in videos] == [*paths, tmp_path / "gone_000002_000012.mp4"]
    assert [video.label for video in videos][2:] == ["air drumming", "air drumming", "abseiling"]
    assert has_split(table, "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,what\na.mp4,run\n",
            r"all.csv has no column of labels \(label, class, action, ...\): it has \['file', 'what'\]. Name one like",
        ),
        (
            "movie,behaviour\na.mp4,run\n",
            r"no column of paths \(path, .*\) or of labels \(label, .*: it has \['movie', 'be",
        ),
        ("path,label\na.mp4,\n", "Line 2 of .*all.csv has no label: .* Fill in path, label"),
        (
            "path,label,split\na.mp4,run,train\nb.mp4,run,\n",
            "Line 3 of .* has no split: .* Fill in path, label, split",
        ),
        (
            "path,label,split\na.mp4,run,train\nb.mp4,right\n",
            "Line 3 of .* is 'b.mp4,right', with 2 cells for the 3 columns path, label, split. Fill in all cells",
        ),
        (
            "path,label\na, b.mp4,run\n",
            "Line 2 of .* is 'a,b.mp4,run', with 3 cells for the 2 columns path, label. Put cells that contain ','",
        ),
        (
            "a.mp4,run,train\n",
            "Line 1 of .* with 3 cells for the 2 columns path, label.* name all columns in a first line",
        ),
        ("path,label\na.mp4,b.mp4\n", "Line 2 of .* has the video file 'b.mp4' as its label"),
        (
            "label,youtube_id,time_start,time_end\nrun,a,soon,1\n",
            "Line 2 of .* has no numbers of seconds as time_start and time_end",
        ),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        find_videos(written(tmp_path, text))


def test_empty_cells_and_rows_of_spreadsheets_are_ignored(tmp_path):
    table = written(tmp_path, "path,label\na.mp4,run,,\n,,,\n\nb.mp4,walk\n")
    assert [video.label for video in find_videos(table)] == ["run", "walk"]
