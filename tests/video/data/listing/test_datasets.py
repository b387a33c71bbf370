"""The files that UCF101, HMDB51 and Something-Something come with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peft_aim.video.data.data import Data
from peft_aim.video.data.listing import Sample, find_videos, read_listing


def fill(root: Path, files: dict[str, object]) -> Path:
    """Write files; what is no text is written as JSON."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return root


UCF101 = {
    "classInd.txt": "1 YoYo\r\n2 Archery\n",
    "trainlist01.txt": "Archery/v_Archery_g08_c01.avi 2\nYoYo/v_YoYo_g08_c02.avi 1\n",
    "testlist01.txt": "Archery/v_Archery_g01_c01.avi\n",
}


def test_ucf101_has_classes_by_name_and_a_test_list(tmp_path):
    data = Data.find(fill(tmp_path, UCF101) / "trainlist01.txt")
    assert data.classes == ["YoYo", "Archery"]
    assert data.train == [
        Sample(tmp_path / "Archery/v_Archery_g08_c01.avi", 1),
        Sample(tmp_path / "YoYo/v_YoYo_g08_c02.avi", 0),
    ]
    assert data.val == [Sample(tmp_path / "Archery/v_Archery_g01_c01.avi", 1)]
    assert data.summary[1].startswith("1 video of 1 class in val from testlist01.txt (UCF101's split file, classes of")
    assert Data.find(tmp_path / "trainlist01.txt", val=tmp_path / "testlist01.txt").val == data.val


def test_classes_of_ucf101_are_folders_without_the_file_of_classes(tmp_path):
    fill(tmp_path, {name: text for name, text in UCF101.items() if name != "classInd.txt"})
    data = Data.find(tmp_path / "trainlist01.txt")
    assert data.classes == ["Archery", "YoYo"] and [video.label for video in data.val] == [0]


def test_videos_of_ucf101_may_be_in_one_folder(tmp_path):
    fill(tmp_path, {**UCF101, "videos/v_Archery_g01_c01.avi": ""})
    found = find_videos(tmp_path / "testlist01.txt", root=tmp_path / "videos")
    assert found == [Sample(tmp_path / "videos/v_Archery_g01_c01.avi", "Archery")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"trainlist01.txt": "videos/a.avi 3\n"}, "Line 1 of .*: neither 'videos' nor 3 is a class of .* which has 2"),
        ({"classInd.txt": "YoYo\n"}, "Line 1 of .*classInd.txt is 'YoYo'. Write each line as: index class"),
        ({"classInd.txt": "0 YoYo\n1 Archery\n"}, r"has the indices \[0, 1\]. Number the classes from 1"),
    ],
)
def test_wrong_files_of_ucf101_are_rejected(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        find_videos(fill(tmp_path, UCF101 | files) / "trainlist01.txt")


HMDB51 = {
    "brush_hair_test_split1.txt": "a.avi 1 \nb.avi 2 \nc.avi 0 \n",
    "clap_test_split1.txt": "#20_d.avi 1 \n",
    "brush_hair_test_split2.txt": "a.avi 2 \nb.avi 1 \n",
    "clap_test_split2.txt": "#20_d.avi 1 \n",
}


def test_hmdb51_has_three_splits_of_train_and_test_videos(tmp_path):
    fill(tmp_path, {**HMDB51, "brush_hair/a.avi": "", "clap/#20_d.avi": ""})
    data = Data.find(tmp_path)
    assert data.classes == ["brush_hair", "clap"]
    assert data.train == [Sample(tmp_path / "brush_hair/a.avi", 0), Sample(tmp_path / "clap/#20_d.avi", 1)]
    assert data.val == [Sample(tmp_path / "b.avi", 0)] and find_videos(tmp_path, "test") == find_videos(
        tmp_path, "val"
    )
    other = Data.find(tmp_path / "brush_hair_test_split2.txt")
    assert [video.path.name for video in other.train] == ["b.avi", "#20_d.avi"]
    assert "(HMDB51's split 2)" in other.summary[0]


def test_wrong_lines_of_hmdb51_are_rejected(tmp_path):
    fill(tmp_path, {"clap_test_split1.txt": "a.avi 1\nb.avi 3\n"})
    with pytest.raises(
        ValueError, match=r"Line 2 of .* is 'b.avi 3'. Write each line as: file 1 \(train\), 2 \(test\)"
    ):
        find_videos(tmp_path, "train")


SOMETHING = {
    "labels.json": {"Holding something": "1", "Dropping something": "0"},
    "train.json": [
        {"id": "7", "label": "holding a cup", "template": "Holding [something]", "placeholders": ["a cup"]}
    ],
    "validation.json": [{"id": "8", "label": "dropping a cup", "template": "Dropping [something]"}],
    "7.webm": "",
    "8/00001.jpg": "",
}


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_templates_are_the_classes_of_something_something(tmp_path, prefix):
    fill(tmp_path, {prefix + name if ".json" in name else name: text for name, text in SOMETHING.items()})
    data = Data.find(tmp_path / f"{prefix}train.json")
    assert data.classes == ["Dropping something", "Holding something"]
    assert data.train == [Sample(tmp_path / "7.webm", 1)] and data.val == [Sample(tmp_path / "8", 0)]
    assert "from " + f"{prefix}validation.json (Something-Something's templates as labels" in data.summary[1]


def test_unknown_templates_are_rejected(tmp_path):
    fill(tmp_path, {**SOMETHING, "labels.json": {"Dropping something": "0"}})
    with pytest.raises(
        ValueError, match=r"Entry 1 of .*'Holding \[something\]', which is not one of the 1 classes of"
    ):
        find_videos(tmp_path / "train.json")


def test_json_may_map_paths_to_labels_or_list_objects(tmp_path):
    fill(tmp_path, {"map.json": {"a.mp4": "run", "b.mp4": "walk"}})
    fill(
        tmp_path,
        {
            "list.json": [
                {"file": "a.mp4", "action": "run", "subset": "train"},
                {"file": "b.mp4", "action": "x", "subset": 1},
            ]
        },
    )
    assert [video.label for video in find_videos(tmp_path / "map.json")] == ["run", "walk"]
    assert find_videos(tmp_path / "list.json", "train") == [Sample(tmp_path / "a.mp4", "run")]
    assert read_listing(tmp_path / "map.json").form == "a mapping of paths to labels"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "a.json is not valid JSON: .* Correct it"),
        ([1, 2], "a.json has neither of the forms"),
        ([{"id": "1"}], r"a.json has no column of labels \(label, class, action, ...\): it has \['id'\]. Name"),
        ([{"id": "1", "label": None}], "Entry 1 of .* has no label: .* Fill in id, label"),
        ([{"id": "1", "label": "x", "set": "train"}, {"id": "2", "label": "x"}], "Entry 2 of .* has no set: "),
        ([{"id": "1", "label": {"run": 1}}], r"Entry 1 of .* has {'run': 1} as label. Write one text or number"),
        ([{"id": ["1"], "template": "x"}], r"Entry 1 of .* has \['1'\] as id. Write one text"),
        ({"a.mp4": True}, "'a.mp4' in .*a.json has True as label. Write one text or number"),
        ({"a.mp4": "\udce9"}, r"has the label '\\udce9', which is not valid Unicode. Correct the label"),
        ([{"id": "1", "template": "\ud800"}], r"Entry 1 of .* label '\\ud800', which is not valid Unicode"),
        ({"a.mp4": {"label": "run"}}, "a.json has neither of the forms"),
    ],
)
def test_wrong_json_is_rejected(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        find_videos(fill(tmp_path, {"a.json": content}) / "a.json")


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.txt"])
def test_json_may_have_an_object_per_line(tmp_path, name):
    lines = '{"file": "a.mp4", "label": "run"}\n\n{"file": "b.mp4", "label": 3}\n'
    source = fill(tmp_path, {name: lines}) / name
    assert [(video.path.name, video.label) for video in find_videos(source)] == [("a.mp4", "run"), ("b.mp4", "3")]


def test_wrong_lines_of_json_are_named(tmp_path):
    fill(tmp_path, {"a.jsonl": '{"file": "a.mp4", "label": "run"}\n{"file": "b.mp4"\n'})
    with pytest.raises(ValueError, match="Line 2 of .*a.jsonl is not valid JSON: .* Correct it"):
        find_videos(tmp_path / "a.jsonl")


@pytest.mark.parametrize("split", ["val", "validation", "Valid", "dev"])
def test_data_sets_have_their_val_split_under_any_name(tmp_path, split):
    ucf, hmdb, something = (tmp_path / name for name in ("ucf", "hmdb", "something"))
    sources = (fill(ucf, UCF101) / "trainlist01.txt", fill(hmdb, HMDB51), fill(something, SOMETHING) / "train.json")
    assert [find_videos(source, split) for source in sources] == [find_videos(source, "val") for source in sources]
    names = [[video.path.name for video in find_videos(source, split)] for source in sources]
    assert names == [["v_Archery_g01_c01.avi"], ["b.avi"], ["8"]]


@pytest.mark.parametrize(
    ("files", "source", "split", "splits"),
    [
        (UCF101, "trainlist01.txt", "holdout", "test, train, val"),
        ({"trainlist01.txt": "a/b.avi 1\n"}, "trainlist01.txt", "validation", "train"),
        (UCF101, "testlist01.txt", "train", "test, val"),
        (HMDB51, ".", "holdout", "test, train, val"),
        (SOMETHING, "train.json", "holdout", "train, val"),
        (SOMETHING, "train.json", "test", "train, val"),
        (SOMETHING, "validation.json", "train", "val"),
        ({"train.json": {"a.mp4": "run"}}, "train.json", "validation", "train"),
    ],
)
def test_no_other_split_stands_in_for_one_that_a_data_set_lacks(tmp_path, files, source, split, splits):
    with pytest.raises(ValueError, match=f"No videos found in .*, split '{split}'. It has the splits {splits}. Check"):
        find_videos(fill(tmp_path, files) / source, split)


def test_the_test_split_of_something_something_is_beside_the_others(tmp_path):
    fill(tmp_path, {**SOMETHING, "test.json": [{"id": "9", "template": "Dropping [something]"}]})
    assert [video.path.name for video in find_videos(tmp_path / "train.json", "test")] == ["9"]
    assert Data.find(tmp_path / "train.json", val=tmp_path / "test.json").val[0].path.name == "9"
    fill(tmp_path, {"test.json": [{"id": "9"}]})
    with pytest.raises(ValueError, match="test.json has no column of labels"):
        find_videos(tmp_path / "train.json", "test")
