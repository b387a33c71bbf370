"""Lists with lines "path label"."""

from __future__ import annotations

from pathlib import Path

import pytest

from peft_aim.video.data.listing import Sample, find_videos, has_split, read_listing


def written(folder: Path, text: str, name: str = "list.txt") -> Path:
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    return folder / name


def found(source: Path) -> list[tuple[str, str]]:
    return [(video.path.relative_to(source.parent).as_posix(), video.label) for video in find_videos(source)]


def test_lists_have_a_path_and_a_label_per_line(tmp_path):
    source = written(tmp_path, "a/x y.mp4 2\n\nb.mp4 0\n")
    assert found(source) == [("a/x y.mp4", "2"), ("b.mp4", "0")]
    assert find_videos(source, root="/videos")[1] == Sample(Path("/videos/b.mp4"), "0")
    assert not has_split(source, "val")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("a.mp4\tturn left\nb.mp4\tgo on 2 steps\n", ["turn left", "go on 2 steps"]),
        ("a.mp4 turn left\nb.mp4 stop\n", ["turn left", "stop"]),
        ("a.mp4 stop\nb.mp4\tgo 2 steps\n", ["stop", "go 2 steps"]),
        ("a.mp4\tgo 2 steps\nb.mp4 stop\n", ["go 2 steps", "stop"]),
        ("path label\na.mp4 run\nb.mp4 walk\n", ["run", "walk"]),
        ("Video Class\na.mp4 run\nb.mp4 walk\n", ["run", "walk"]),
        ("# by hand\na.mp4 run\n   # b\nb.mp4 walk\n", ["run", "walk"]),
        ("a.mp4,run\nb.mp4,walk, then run\n".replace("walk, then run", '"walk, then run"'), ["run", "walk, then run"]),
        ("a.mp4 run, then walk\nb.mp4 walk\n", ["run, then walk", "walk"]),
        ("a.mp4;run\r\nb.mp4;walk\r\n", ["run", "walk"]),
        ("\ufeffa.mp4 run\rb.mp4 walk\r", ["run", "walk"]),
    ],
)
@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_separators_headers_and_comments_are_recognized(tmp_path, text, labels, name):
    assert found(written(tmp_path, text, name)) == [("a.mp4", labels[0]), ("b.mp4", labels[1])]


def test_columns_may_be_separated_by_spaces(tmp_path):
    source = written(tmp_path, "label path split\nrun a.mp4 train\nwalk b.mp4 val\n")
    assert find_videos(source, "train") == [Sample(tmp_path / "a.mp4", "run")]
    assert find_videos(source, "val") == [Sample(tmp_path / "b.mp4", "walk")]


def test_lists_may_be_utf_16(tmp_path):
    (tmp_path / "list.txt").write_bytes("caf\u00e9.mp4 run\n".encode("utf-16"))
    assert found(tmp_path / "list.txt") == [("caf\u00e9.mp4", "run")]


def test_names_may_begin_with_a_number_sign(tmp_path):
    source = written(tmp_path, "# made by hand\n#20_Rhythm.avi clap\n")
    assert found(source) == [("#20_Rhythm.avi", "clap")] and read_listing(source).left_out == ("1 comment",)


def test_folders_may_have_a_number_of_frames(tmp_path):
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        for i in range(4):
            (tmp_path / name / f"{i}.jpg").touch()
    assert found(written(tmp_path, "1 4 run\n2 4 walk\n")) == [("1", "run"), ("2", "walk")]
    assert found(written(tmp_path, "1 run\n2 walk\n")) == [("1", "run"), ("2", "walk")]
    assert found(written(tmp_path, "1/ 4 run\n2/ 4 walk\n")) == [("1", "run"), ("2", "walk")]
    with pytest.raises(
        ValueError, match="Line 1 of .* is '1 0 1', with '0 1' after the path. Write .* Separate several labels by "
    ):
        find_videos(written(tmp_path, "1 0 1\n2 1 1\n"))


def test_ids_stand_for_files(tmp_path):
    for name in ("1.webm", "run/2.mp4", "list/3.AVI"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = written(tmp_path, "1 run\n2 run\n3 run\n4 run\n")
    assert [path for path, _ in found(source)] == ["1.webm", "run/2.mp4", "list/3.AVI", "4"]
    assert read_listing(source).summary("train").splitlines()[1] == f"Missing: 1 file, {tmp_path / '4'} for example."


def test_missing_videos_hint_at_the_root(tmp_path):
    summary = read_listing(written(tmp_path, "a.mp4 run\nb.mp4 walk\n")).summary("train")
    assert summary.endswith("a.mp4 for example. Give the folder of the videos with --root.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("only-a-path.mp4\n", "Line 1 of .*list.txt is 'only-a-path.mp4'. Write each line as: path label"),
        ("\n", "No videos found in"),
        ("caf\udce9.mp4 1\n", "list.txt is not valid UTF-8.* Save it as UTF-8"),
        (
            "a.mp4 0 1\n",
            r"Line 1 of .* is 'a.mp4 0 1', with '0 1' after the path. Write .* Separate several labels by \|",
        ),
        ("clip 0 1\n", "Line 1 of .* is 'clip 0 1', with '0 1' after the path. Write each line as"),
        ("a.mp4 run\nb.mp4 c.mp4\n", "Line 2 of .* has the video file 'c.mp4' as its label. Write one video per line"),
        ("movie behaviour\na.mp4 run\n", "Line 1 of .* is 'movie behaviour', which names no video, but the next line"),
    ],
)
def test_lines_that_cannot_be_read_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        find_videos(written(tmp_path, text))


def test_wrong_sources_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist. Give a folder of videos, or a list"):
        find_videos(tmp_path / "nowhere")
    (tmp_path / "a.MP4").touch()
    with pytest.raises(ValueError, match="a.MP4 is a video file. Give a folder of videos, or a list"):
        find_videos(tmp_path / "a.MP4")
