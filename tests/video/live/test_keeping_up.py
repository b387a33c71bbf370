"""Sources of any length and speed: bounded memory, skipped frames, pace, and silence; without real video."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Event
from threading import enumerate as alive_threads
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from peft_aim.video.backbones import Source
from peft_aim.video.data import BrokenVideo, Preprocessing
from peft_aim.video.description import Description
from peft_aim.video.live import mailbox, reader
from peft_aim.video.live import watch as watch_module
from peft_aim.video.live.events import Remark, Scores
from peft_aim.video.live.mailbox import BURST, ROOM, Mailbox
from peft_aim.video.live.pace import Pace
from peft_aim.video.live.scoring import Scorer
from peft_aim.video.live.taking import Taker
from peft_aim.video.live.watch import Watch
from peft_aim.video.recipe import Recipe

RATE = 10  # frames per second


class Synthetic:
    """A source of as many frames as wanted, also in place of its connection.

    Attributes:
        name: Name of the source.
        is_live: Whether it is a camera or a stream.
        rate: Frames per second.
        is_recording: Whether its end is known.
        is_hdr: Whether it is in HDR.
        before: Called with the index of each frame before it comes.
        after: Called when all have come.
    """

    name, is_live, rate, is_recording, is_hdr = "synthetic", True, RATE, False, False

    def __init__(self, count: int, before=lambda i: None, after=lambda: None) -> None:
        self.count, self.before, self.after = count, before, after
        self.frame = av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), dtype=np.uint8), format="rgb24")

    @contextmanager
    def opened(self, *_: object) -> Iterator[Synthetic]:
        yield self

    def frames(self, damage: object) -> Iterator[tuple[float, av.VideoFrame]]:
        for i in range(self.count):
            self.before(i)
            yield i / RATE, self.frame
        self.after()


class Last(Scorer):
    """Holds the last four frames, whose scores are all the same."""

    def __init__(self, each=lambda: None) -> None:
        self.each, self.held = each, []

    def push(self, frame: Tensor) -> Tensor:
        self.each()
        self.held = [*self.held[-3:], frame]
        return torch.tensor([0.25, 0.75])

    def reset(self) -> None:
        self.held = []


class Counted:
    """Preprocessing that counts the frames in memory."""

    def __init__(self) -> None:
        self.alive = self.most = 0

    def __call__(self, picture: Tensor) -> Tensor:
        frame = torch.zeros(3, 1, 1)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(frame, self.forget)
        return frame

    def forget(self) -> None:
        self.alive -= 1


@pytest.fixture(autouse=True)
def connected(monkeypatch):
    monkeypatch.setattr(reader, "Connection", lambda source: source)


def watched(source: Synthetic, scorer: Scorer | None = None, prepare: Counted | None = None, **options) -> Watch:
    return Watch(source, scorer or Last(), prepare or Counted(), classes=["a", "b"], **{"retry": 0, **options})


def scores_of(watch: Watch) -> list[Scores]:
    return [event for event in watch if isinstance(event, Scores)]


# Memory and speed.


@pytest.mark.parametrize("live", [False, True])
def test_memory_is_bounded_in_an_hour_of_video(live):
    """Whether frames wait for the model or are skipped, few are held."""
    prepare = Counted()
    watch = watched(Synthetic(3600 * RATE), prepare=prepare, fps=0.25, live=live)
    scored = len(scores_of(watch))
    summary = watch.summary
    assert (summary.seen, summary.taken, summary.seconds) == (36000, 900, 3599.9)
    assert scored + summary.skipped == 900 and (live or not summary.skipped)
    assert prepare.most <= (BURST if live else ROOM) + 4 + 3  # waiting, held by the scorer, and on their way


def test_a_recording_may_be_played_in_real_time():
    waits = []
    paced = SimpleNamespace(wait=waits.append)
    taker = Taker("a.mp4", Mailbox(RATE), lambda picture: picture, RATE)
    taker._mailbox.newest_win = True
    taker.take_from(Synthetic(4), paced)
    assert len(waits) == 4 and all(i / RATE - 3 < wait <= i / RATE for i, wait in enumerate(waits))


def test_of_a_burst_the_newest_frames_are_scored_and_the_others_counted():
    """The model is busy with the first frame until all others have come."""
    busy, come = Event(), Event()
    source = Synthetic(200, before=lambda i: i == 1 and busy.wait(5), after=come.set)
    watch = watched(source, Last(lambda: busy.set() or come.wait(5)), fps=RATE)
    events = [*watch]
    scores = [event for event in events if isinstance(event, Scores)]
    assert "Frames are skipped, to keep up with synthetic; the summary has their number." in map(str, events)
    assert [event.time for event in scores] == [0, *(i / RATE for i in range(200 - BURST, 200))]
    assert scores[-1].skipped == watch.summary.skipped == 199 - BURST
    assert all(event.delay >= 0 for event in scores)
    assert "behind, 135 skipped)" in str(scores[-1]) and "200 taken, 135 of them skipped" in str(watch.summary)


def test_fewer_frames_wait_for_a_model_that_is_slower_than_the_source(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(mailbox, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    box = mailbox.Mailbox(fps=RATE)
    box.newest_win = True
    for number in range(12):  # frames come every 0.1 s, and the model takes 0.3 s for each
        for i in range(3):
            box.put(mailbox.Taken(number + i / 3, torch.empty(0), 0.0))
        box.get(0)
        clock[0] += 0.3
    box.put(mailbox.Taken(12.0, torch.empty(0), 0.0))
    assert [box.get(0).time for _ in range(ROOM)] == [11 + 2 / 3, 12] and box.get(0) is None
    assert box.skipped == 36 + 1 - 12 - ROOM


def test_the_thread_ends_when_nobody_watches_any_more():
    watch = watched(Synthetic(3600 * RATE), fps=RATE, live=False)
    for event in watch:
        if isinstance(event, Scores):
            break
    assert not [thread for thread in alive_threads() if thread.name == "reading synthetic"]
    assert watch.summary.seen < 20


def test_a_stream_that_has_become_a_recording_has_ended(monkeypatch):
    """As HLS does, of which the last segments are still there."""
    monkeypatch.setattr(reader, "FIRST_PAUSE", 0.01)
    source = Synthetic(20)
    source.after = lambda: setattr(source, "is_recording", True)
    watch = watched(source, fps=RATE, retry=3)
    assert len(scores_of(watch)) == 20 == watch.summary.seen


# Pace.


@pytest.mark.parametrize("rate", [10, 25, 29.97, 30])
@pytest.mark.parametrize("fps", [1, 4, 5, 7.5, 10])
def test_frames_are_taken_at_the_rate_and_never_far_from_their_moment(rate, fps):
    """Times are rounded to milliseconds, as in Matroska."""
    pace, times = Pace(fps, rate), [round(i / rate, 3) for i in range(int(rate * 20))]
    taken = [time for time in times if pace.takes(time)]
    assert len(taken) == pytest.approx(20 * fps, abs=1)
    assert all(abs(time - i / fps) <= 0.5 / rate + 1e-3 for i, time in enumerate(taken))


def test_all_frames_of_a_jittering_camera_of_this_rate_are_taken():
    pace = Pace(30, 30)
    assert all(pace.takes(i / 30 + 0.012 * (-1) ** i * (i > 0)) for i in range(300))


def test_after_a_gap_frames_are_taken_as_before():
    pace = Pace(fps=2, rate=10)
    assert [t for t in (0, 0.1, 0.5, 7.0, 7.1, 7.5) if pace.takes(t)] == [0, 0.5, 7.0, 7.5]


@pytest.mark.parametrize(
    ("stride", "seconds", "rate", "expected"),
    [(4, 9.9, 30, 7.5), (None, 1.9, 10, 4), (None, 2.0, None, 4), (4, 2.0, None, None), (None, None, None, None)],
)
def test_the_rate_of_training_is_that_of_the_clips_of_a_typical_video(stride, seconds, rate, expected):
    """8 frames that are 4 apart, or spread over the 20 frames of a video; earlier versions did not record its rate."""
    gray = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)
    description = Description.new(Recipe(frames=8, stride=stride), gray, Source("test_vit"), ["a", "b"])
    assert replace(description, seconds=seconds, rate=rate).clip_rate == expected


def test_a_source_with_fewer_frames_than_wanted_is_noted():
    (remark,) = [str(event) for event in watched(Synthetic(20), fps=25) if isinstance(event, Remark)]
    assert remark == (
        "synthetic has 10 frames per second, fewer than the 25 to take: all are taken, and look 2.5 times as fast to "
        "the model."
    )


# Silence.


def test_a_source_that_blocks_for_good_is_an_error(monkeypatch):
    """Where no time-out of FFmpeg helps, as in the driver of a camera."""
    monkeypatch.setattr(watch_module, "LOOK", 0.01)
    monkeypatch.setattr(watch_module, "LONGEST_PAUSE", 0)
    never = Event()
    watch, remarks = watched(Synthetic(2, before=lambda i: i and never.wait(5)), fps=RATE, timeout=0.05), []
    with pytest.raises(BrokenVideo, match="synthetic has not answered for 0 s, in spite of --timeout"):
        remarks += watch
    never.set()
    assert "Waiting for synthetic: nothing has come for 0 s." in map(str, remarks)


def test_what_goes_wrong_in_the_thread_is_raised():
    def fails(i: int) -> None:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError):
        list(watched(Synthetic(5, before=fails), fps=RATE))
