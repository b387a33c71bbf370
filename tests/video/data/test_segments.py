"""Segments of long videos: in tables, in decoding, and among the videos of both splits."""

from __future__ import annotations

import pytest
from PIL import Image
from videos import shown, write

from peft_aim.video.data import Data, find_videos, notes_on
from peft_aim.video.data.clips import EvaluationClips, TrainingClips, open_sample, why_unreadable
from peft_aim.video.data.decode import BrokenVideo
from peft_aim.video.data.listing import Sample
from peft_aim.video.data.transforms import ForTraining, Preprocessing
from peft_aim.video.data.views import Views
from peft_aim.video.recipe import Recipe

GREY = Preprocessing((16, 16), (0.0,) * 3, (1.0,) * 3)


def written(folder, text):
    (folder / "all.csv").write_text(text)
    return folder / "all.csv"


def test_tables_have_segments(tmp_path):
    found = find_videos(written(tmp_path, "video,label,start,end\na.mp4,run,0.5,2\na.mp4,stop,2,\na.mp4,run,,\n"))
    assert [(video.start, video.end) for video in found] == [(0.5, 2.0), (2.0, None), (None, None)]
    data = Data.find(tmp_path / "all.csv")
    assert [video.label for video in data.train] == [0, 1, 0] and data.problem_type.startswith("single")
    assert "3 segments of 1 video of 2 classes in train from all.csv" in data.summary[0]
    assert "start and end as segment" in data.summary[0]
    several = Data.find(written(tmp_path, "path,label,start_time,end_time\na,x,0,1\na,y,0,1\na,x,1,2\n"))
    assert [video.label for video in several.train] == [frozenset({0, 1}), frozenset({0})]


def test_videos_of_kinetics_may_be_cut_to_their_segments_or_not(tmp_path):
    for name in ("a_000001_000003.mp4", "b.mp4"):
        (tmp_path / name).touch()
    found = find_videos(written(tmp_path, "label,youtube_id,time_start,time_end\nrun,a,1,3\nrun,b,4,6\n"))
    assert found == [Sample(tmp_path / "a_000001_000003.mp4", "run"), Sample(tmp_path / "b.mp4", "run", 4.0, 6.0)]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ("2,1", "Line 2 of .* has start=2 and end=1, a segment without length. Give an end after the start"),
        ("-1,1", "Line 2 of .* has start=-1 and end=1, which is outside of any video"),
        ("nan,1", "Line 2 of .* has start=nan and end=1, which is outside"),
        ("0:10,1", "Line 2 of .* has no numbers of seconds as start and end: start=0:10 and end=1"),
    ],
)
def test_impossible_times_are_rejected(tmp_path, times, message):
    with pytest.raises(ValueError, match=message):
        find_videos(written(tmp_path, f"path,label,start,end\na.mp4,run,{times}\n"))


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
@pytest.mark.parametrize(
    ("start", "end", "frames"),
    [
        (0.3, 0.7, [3, 4, 5, 6]),
        (None, 0.2, [0, 1]),
        (1.0, None, [10, 11]),
        (0.9, 1.25, [9, 10, 11]),  # a bit after the end
        (0.54, 0.56, [5]),  # between two frames: that which is shown
        (0.35, 0.55, [4, 5]),
    ],
)
def test_a_segment_has_its_frames_only(tmp_path, suffix, start, end, frames):
    path = write(tmp_path / f"a{suffix}")  # 12 frames, 10 a second
    with open_sample(Sample(path, 0, start, end), fps=12) as video:
        assert shown(video.read(range(len(video.seconds)))) == frames
        assert video.seconds == pytest.approx([i / 10 for i in range(len(frames))], abs=1e-3)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (1.3, 2.0, r"a.mp4 lasts 1\.20 s, but the segment from 1\.3 to 2 s is after that. Correct start and end"),
        (0.8, 2.0, r"a.mp4 lasts 1\.20 s, but more than a fifth of the segment from 0\.8 to 2 s is after that"),
        (5.0, None, "the segment from 5 to the end is after that"),
    ],
)
def test_segments_outside_of_their_video_are_reported_like_broken_videos(tmp_path, start, end, message):
    sample = Sample(write(tmp_path / "a.mp4"), 0, start, end)
    with pytest.raises(BrokenVideo, match=message), open_sample(sample, fps=12):
        pass
    item = EvaluationClips([sample], Views(2, None, 1, 1, GREY), min_frames=1, fps=12)[0]
    assert item["labels"] == -100 and "Correct start and end" in item["skipped"] and item["path"] == str(sample)


def test_clips_are_sampled_from_the_segment(tmp_path):
    sample, recipe = Sample(write(tmp_path / "a.mp4"), 1, 0.5, 0.8), Recipe(frames=3, min_frames=1, crop_scale=(1, 1))
    training = TrainingClips([sample], recipe, ForTraining(GREY, recipe, ["a", "b"]))
    for training.epoch[()] in range(3):
        assert shown(255 * training[0]["clips"]) == [5, 6, 7]
    views = EvaluationClips([sample], Views(3, None, 1, 1, GREY), min_frames=1, fps=12)[0]["clips"]
    assert shown(255 * views[0]) == [5, 6, 7]


def test_segments_leak_if_they_overlap(tmp_path):
    a = write(tmp_path / "a.mp4")
    train = [Sample(a, 0, 0.0, 0.4), Sample(a, 1, 0.4, 0.8)]
    notes = notes_on(Data(["x", "y"], train, [Sample(a, 0, 0.3, 0.5), Sample(a, 1, 0.8, 1.2)]))
    example = f"{a.name} (0.3 to 0.5 s) and {a.name} (0 to 0.4 s)"
    assert f"1 of the 2 val videos is also in the train split (by content), {example} for example" in notes[-2]
    assert "1 of the 2 val segments is of a video with other segments in the train split" in notes[-1]
    assert not any("given twice" in note for note in notes)


def test_folders_of_images_have_the_frames_per_second_of_the_recipe(tmp_path):
    """A segment from 20 to 28 s is in a folder of 60 images at 2 frames per second, but not at 12."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(60):
            Image.new("L", (16, 16), i).save(tmp_path / name / f"{i:03}.png")
    data = Data.find(written(tmp_path, "path,label,start,end\na,run,20,28\nb,walk,20,28\n"))
    assert why_unreadable(data.train, 1, fps=2) == ""
    assert "lasts 5.00 s, but the segment from 20 to 28 s is after that" in why_unreadable(data.train, 1, fps=12)


def test_few_rows_with_another_label_are_mistakes(tmp_path):
    rows = [f"{i}.mp4,{'run' if i % 2 else 'walk'}\n" for i in range(40)]
    table = written(tmp_path, "".join(["path,label\n", *rows, "7.mp4,walk\n"]))
    with pytest.raises(
        ValueError, match=r"1 of 40 videos have several labels, .*7.mp4 .*: .'run', 'walk'.. Give one label"
    ):
        Data.find(table)
    assert Data.find(table, problem_type="multi_label_classification").train[7].label == {0, 1}
