"""Videos in folders of classes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from peft_aim.video.data.data import Data
from peft_aim.video.data.listing import find_videos, has_split, read_listing


def fill(root: Path, *names: str) -> Path:
    """Make files of these names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path, split: str | None = "train") -> list[str]:
    return [video.path.relative_to(root).as_posix() for video in find_videos(root, split)]


def test_numeric_folder_names_are_class_names(tmp_path):
    data = Data.find(fill(tmp_path, "train/1/a.mp4", "train/2/a.mp4", "train/03/a.mp4"))
    assert data.classes == ["03", "1", "2"] and [video.label for video in data.train] == [0, 1, 2]


SUFFIXES = (
    *(
        "MP4",
        "ts",
        "mts",
        "m2ts",
        "m2t",
        "3gp",
        "3g2",
        "ogv",
        "ogm",
        "vob",
        "asf",
        "webp",
        "rmvb",
        "divx",
        "dv",
        "mxf",
    ),
    *("nut", "mjpeg", "h264", "hevc", "ivf", "y4m", "f4v", "qt", "m2v", "mod", "apng"),
)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_usual_suffixes_are_videos(tmp_path, suffix):
    assert found(fill(tmp_path, f"train/run/a.{suffix}")) == [f"train/run/a.{suffix}"]


def test_what_is_left_out_is_named_with_a_count(tmp_path):
    fill(tmp_path, "train/run/a.mp4", "train/run/b.txt", "train/run/c.json", "train/walk/d.txt", "train/e.mp4")
    (tmp_path / "train/fly").mkdir()
    assert read_listing(tmp_path, "train").summary("train").splitlines() == [
        f"1 video of 1 class in train from {tmp_path.name} (a folder for each class)",
        "Left out: 3 files of other kinds (.json, .txt), 2 class folders without videos (fly, walk), 1 file outside "
        "of the class folders (e.mp4)",
    ]


def test_nothing_but_other_files_is_an_error_that_names_them(tmp_path):
    with pytest.raises(ValueError, match=r"No videos found in .*, split 'train'. Left out: 1 file of other kinds"):
        find_videos(fill(tmp_path, "train/run/a.docx"), "train")


def test_leftovers_of_operating_systems_are_ignored(tmp_path):
    fill(tmp_path, "train/run/a.mp4", "train/run/._a.mp4", "train/run/.b.mp4", "train/run/Thumbs.db")
    fill(tmp_path, "train/__MACOSX/run/._a.mp4", "train/.Trash/a.mp4", "train/run/@eaDir/a.mp4/thumb.mp4")
    fill(tmp_path, "train/lost+found/a.mp4", "train/$RECYCLE.BIN/a.mp4", "train/.DS_Store", "train/desktop.ini")
    listing = read_listing(tmp_path, "train")
    assert [video.path for video in listing.videos] == [tmp_path / "train/run/a.mp4"] and listing.left_out == ()


def test_linked_folders_are_followed_once(tmp_path):
    fill(tmp_path, "train/run/a.mp4", "elsewhere/b.mp4")
    (tmp_path / "train/run/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train/run/loop").symlink_to(tmp_path / "train")
    (tmp_path / "train/walk").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path) == ["train/run/a.mp4", "train/run/more/b.mp4", "train/walk/b.mp4"]


def test_class_names_are_the_same_however_they_are_composed(tmp_path):
    name = "r\u00e9ception"
    fill(tmp_path, f"train/{unicodedata.normalize('NFC', name)}/a.mp4", "train/run/a.mp4")
    fill(tmp_path, f"val/{unicodedata.normalize('NFD', name)}/b.mp4")
    data = Data.find(tmp_path)
    assert data.classes == ["run", name] and [video.label for video in data.val] == [1]
    assert data.val[0].path.exists()


def test_folders_of_images_are_videos(tmp_path):
    fill(tmp_path, *(f"train/run/{video}/0000{i}.jpg" for video in "12" for i in range(3)), "train/run/c.mp4")
    fill(
        tmp_path, "train/run/cover.jpg", "train/walk/deep/3/1.PNG", "train/walk/mixed/a.mp4", "train/walk/mixed/a.jpg"
    )
    assert found(tmp_path) == [
        *("train/run/1", "train/run/2", "train/run/c.mp4"),
        *("train/walk/deep/3", "train/walk/mixed/a.mp4"),
    ]
    assert read_listing(tmp_path, "train").summary("train").splitlines() == [
        f"5 videos of 2 classes in train from {tmp_path.name} (a folder for each class, 3 folders of frames)",
        "Left out: 2 files of other kinds (.jpg)",
    ]


def test_still_webp_are_frames_and_animated_ones_videos(tmp_path):
    fill(tmp_path, *(f"train/run/{video}/{i}.webp" for video in ("still", "moving") for i in range(2)))
    for i in range(2):
        (tmp_path / f"train/run/still/{i}.webp").write_bytes(b"RIFF....WEBPVP8 ....")
        (tmp_path / f"train/run/moving/{i}.webp").write_bytes(b"RIFF....WEBPVP8X....\x02")
    assert found(tmp_path) == ["train/run/moving/0.webp", "train/run/moving/1.webp", "train/run/still"]


def test_split_folders_have_other_names_too(tmp_path):
    fill(tmp_path, "Training/run/a.mp4", "validation/run/b.mp4")
    assert found(tmp_path) == ["Training/run/a.mp4"] and found(tmp_path, "val") == ["validation/run/b.mp4"]
    assert has_split(tmp_path, "val") and not has_split(tmp_path, "test")


@pytest.mark.parametrize(
    ("folder", "splits"), [("val", ["validation", "valid", "dev", "Val", "VAL"]), ("train", ["training", "Train"])]
)
def test_splits_have_other_names_too(tmp_path, folder, splits):
    fill(tmp_path, f"{folder}/run/a.mp4", "holdout/run/b.mp4")
    assert all(has_split(tmp_path, split) for split in splits)
    assert [found(tmp_path, split) for split in splits] == [[f"{folder}/run/a.mp4"]] * len(splits)
    assert found(tmp_path, "Holdout") == ["holdout/run/b.mp4"]


def test_still_webp_are_no_videos_beside_videos(tmp_path):
    fill(tmp_path, "train/run/a.mp4", "train/run/still.webp", "train/run/moving.webp")
    (tmp_path / "train/run/still.webp").write_bytes(b"RIFF....WEBPVP8 ....")
    (tmp_path / "train/run/moving.webp").write_bytes(b"RIFF....WEBPVP8X....\x02")
    assert found(tmp_path) == ["train/run/a.mp4", "train/run/moving.webp"]
    assert read_listing(tmp_path, "train").left_out == ("1 file of other kinds (.webp)",)


def test_names_of_folders_are_never_indices(tmp_path):
    fill(tmp_path, "train/1/a.mp4", "train/2/b.mp4", "val/0/c.mp4", "val/1/d.mp4", "val/2/e.mp4")
    with pytest.raises(ValueError, match=r"c.mp4 has the label '0', which is not one of the classes \['1', '2'\]"):
        Data.find(tmp_path)
    fill(tmp_path / "named", "train/run/a.mp4", "train/walk/b.mp4", "val/0/c.mp4")
    with pytest.raises(ValueError, match="label '0', which is not one of the classes"):
        Data.find(tmp_path / "named")


def test_folders_may_be_indices_of_given_names(tmp_path):
    fill(tmp_path, "train/0/a.mp4", "train/1/b.mp4", "val/1/c.mp4")
    data = Data.find(tmp_path, classes=["run", "walk"])
    assert data.classes == ["run", "walk"] and [video.label for video in data.val] == [1]


def test_class_folders_are_valid_unicode(tmp_path):
    fill(tmp_path, "train/caf\udce9/a.mp4")
    with pytest.raises(ValueError, match=r"label 'caf\\udce9', which is not valid Unicode. Correct the label"):
        find_videos(tmp_path, "train")
