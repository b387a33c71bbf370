"""What changed in the videos since a run was started is named."""

from __future__ import annotations

from pathlib import Path

from peft_aim.video.data.data import Data, listed
from peft_aim.video.data.listing import Sample
from peft_aim.video.training.changes import changes


def video(name, label):
    return Sample(Path(name), label)


VIDEOS = [video(f"{i}.mp4", i % 2) for i in range(20)]


def test_videos_that_came_went_or_changed_their_label_are_named_up_to_five_each():
    before = listed(Data(["run", "walk"], VIDEOS, [video("v.mp4", 0)]))
    now = listed(Data(["run", "walk"], [video("0.mp4", 1), *VIDEOS[8:], video("new.mp4", 0)], [video("v.mp4", 0)]))
    assert changes(before, now) == (
        "1 video came: train new.mp4; 7 went: train 1.mp4, train 2.mp4, train 3.mp4, train 4.mp4, train 5.mp4 and 2 "
        "more; 1 has another label: train 0.mp4 (run, now walk)"
    )


def test_a_video_of_another_split_comes_and_goes():
    before, now = listed(Data(["run"], [video("a.mp4", 0)])), listed(Data(["run"], [], [video("a.mp4", 0)]))
    assert changes(before, now) == "1 video came: val a.mp4; 1 went: train a.mp4"


def test_another_order_is_said_to_be_one():
    before, now = listed(Data(["run", "walk"], VIDEOS)), listed(Data(["run", "walk"], VIDEOS[::-1]))
    assert changes(before, now) == "they are listed in another order, or another number of times"


def test_any_name_fits_a_line():
    odd = "a\nb\tc\udce9\u2028.mp4"
    lines = (
        listed(Data(["turn\tleft", "walk"], [video(odd, 0)]))
        .encode("utf-8", "surrogateescape")
        .decode(errors="ignore")
    )
    assert lines.count("\n") == 1 and lines.count("\t") == 2
    assert changes("", listed(Data(["run"], [video(odd, 0)]))).startswith(r"1 video came: train a\nb\tc")
