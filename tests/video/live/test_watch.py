"""Watching real sources: files, pipes, streams that break off, and sources that are not there."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest
import torch
from live import Server, mpegts, pieces, write_slowly
from videos import write

from benchmarks.containers.forms import Encoded
from benchmarks.containers.numbered import numbered
from peft_aim import AIMConfig
from peft_aim.__main__ import main
from peft_aim.video.data import BrokenVideo, open_video
from peft_aim.video.evaluate import score
from peft_aim.video.live import watch as watch_module
from peft_aim.video.live.events import Remark, Scores
from peft_aim.video.live.printing import Printer
from peft_aim.video.live.watch import watch
from peft_aim.video.predict import predict


def old(path: Path) -> Path:
    """Return a file as if it had been written an hour ago."""
    os.utime(path, (time.time() - 3600,) * 2)
    return path


def scores_in(events: list) -> list[Scores]:
    return [event for event in events if isinstance(event, Scores)]


def remarks_in(events: list) -> str:
    return "\n".join(str(event) for event in events if isinstance(event, Remark))


# Files.


def test_the_last_window_has_the_scores_of_the_model_on_that_clip(adapter, tmp_path):
    path = old(write(tmp_path / "a.mp4", count=22))
    events = list(watch(adapter, str(path), top_k=3, window=True))
    loaded = watch_module.load_adapters([adapter], None)
    views = loaded.descriptions[0].views_with(1, 1)
    for scores, last in zip(scores_in(events), range(6, 22, 2), strict=True):
        with open_video(path) as video:
            clip = views.made(video.read(range(last - 6, last + 2, 2), views.transform.covering))
        (expected,) = score(loaded.model, clip, 1)
        assert torch.equal(torch.tensor([p for _, p in scores.top]), expected.sort(descending=True).values)
        assert (scores.time, scores.frames, scores.delay) == (pytest.approx(last / 10), 4, None)
    assert remarks_in(events) == "Taking 5 frames per second, as in training: the 4 frames of a clip are 0.8 s."


def test_a_causal_adapter_has_at_each_frame_the_scores_of_the_video_so_far(causal_adapter, tmp_path):
    path = old(write(tmp_path / "a.mp4", count=22))
    found = scores_in(list(watch(causal_adapter, str(path), top_k=3)))
    loaded = watch_module.load_adapters([causal_adapter], None)
    views = loaded.descriptions[0].views_with(1, 1)
    with open_video(path) as video:
        taken = torch.cat([*views.transform.cropped(video.read(range(0, 22, 2), views.transform.covering))])
    for count, scores in enumerate(found, 1):
        (expected,) = score(loaded.model, taken[None, :count], 1)
        assert [p for _, p in scores.top] == pytest.approx(expected.sort(descending=True).values.tolist(), abs=1e-5)
        assert scores.frames == min(count, 4)
    assert len(found) == 11


def test_an_adapter_that_is_not_causal_needs_a_window(adapter, tmp_path):
    with pytest.raises(
        ValueError, match=r"is not causal: in its temporal .* Give --window \(window=True in Python\) to"
    ):
        watch(adapter, str(write(tmp_path / "a.mp4")))


def test_a_file_of_a_single_clip_is_scored_as_predict_does(adapter, tmp_path):
    path = old(write(tmp_path / "a.mp4", count=7))
    (scores,) = scores_in(list(watch(adapter, str(path), window=True)))
    assert scores.top == predict(adapter, path)[0].top


def test_a_growing_file_is_read_to_its_end(adapter, tmp_path):
    data, path = mpegts(tmp_path, 60), tmp_path / "growing.ts"
    path.write_bytes(data[:100])  # not even a frame
    watched = watch(adapter, str(path), window=True, timeout=0.5)
    events = iter(watched)
    os.utime(path)
    next(events)
    write_slowly(path, data[100:])
    assert [scores.time for scores in events] == pytest.approx([i / 5 for i in range(3, 30)])
    assert (watched.summary.seen, watched.summary.taken, watched.summary.skipped) == (60, 30, 0)


@pytest.mark.parametrize("form", ["a.mkv", "frag_keyframe+empty_moov.mp4", "none.mp4"])
def test_growing_files_of_other_containers_are_read_to_their_end(adapter, tmp_path, form):
    """MP4 with its index at the end as soon as that is written."""
    flags = Path(form).stem
    Encoded(flags={"movflags": flags} if "+" in flags else {})(numbered(60), tmp_path / form)
    data, path = (tmp_path / form).read_bytes(), tmp_path / f"growing{Path(form).suffix}"
    path.write_bytes(data[: len(data) // 3])
    watched = watch(adapter, str(path), window=True, timeout=0.5)
    events = iter(watched)
    os.utime(path)
    next(events)
    write_slowly(path, data[len(data) // 3 :])
    events = list(events)
    assert scores_in(events) and watched.summary.seen == 60
    remark = f"{path} cannot be read yet (its index comes last); it is still being written to."
    assert remarks_in(events) == (remark if form == "none.mp4" else "")


def test_frames_of_another_size_in_mid_stream_are_resized(adapter, tmp_path):
    path = tmp_path / "a.ts"
    path.write_bytes(mpegts(tmp_path, 20) + mpegts(tmp_path, 20, size=(64, 32)))
    events = list(watch(adapter, str(old(path)), window=True))
    assert len(scores_in(events)) == 17
    assert "change from 48 x 32 to 32 x 64 pixels" in remarks_in(events)


def test_damaged_packets_are_skipped_and_counted(adapter, tmp_path):
    data, path = bytearray(mpegts(tmp_path, 60)), tmp_path / "a.ts"
    middle = len(data) // 188 // 2 * 188
    data[middle : middle + 20 * 188] = bytes(20 * 188)
    path.write_bytes(data)
    watched = watch(adapter, str(old(path)), window=True)
    assert len(scores_in(list(watched))) > 15
    assert 0 < watched.summary.damaged < 20 and 40 <= watched.summary.seen < 60


def test_a_file_that_is_no_video_is_an_error(adapter, tmp_path):
    (tmp_path / "a.ts").write_text("not a video")
    with pytest.raises(BrokenVideo, match=r"a.ts cannot be opened as a video: Invalid data found when "):
        list(watch(adapter, str(old(tmp_path / "a.ts")), window=True))


def test_a_file_with_fewer_frames_than_a_window_is_an_error(adapter, tmp_path):
    with pytest.raises(BrokenVideo, match=r"a.mp4 ended after 3 of the frames of a window, so there are "):
        list(watch(adapter, str(old(write(tmp_path / "a.mp4", count=5))), window=True))
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(ValueError, match=r"There is no file .*a.mp4. Give a video file, a camera \(0 or /dev"):
        watch(adapter, str(tmp_path / "a.mp4"), window=True)


@contextmanager
def served(folder: Path, sends: float = 1.0) -> Iterator[str]:
    """Serve a folder, but only a part of each file; the URL."""

    class Handler(SimpleHTTPRequestHandler):
        def copyfile(self, source, output) -> None:
            data = source.read()
            output.write(data[: int(sends * len(data))])

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_recording_at_a_url_is_read_once_and_no_frame_is_skipped(adapter, tmp_path):
    """Its server tells no length but that of the file."""
    (tmp_path / "a.ts").write_bytes(mpegts(tmp_path, 60))
    with served(tmp_path) as url:
        watched = watch(adapter, f"{url}/a.ts", window=True)
        assert len(scores_in(list(watched))) == 27 and watched.summary.reconnections == 0


def test_a_recording_at_a_url_that_breaks_off_is_an_error(adapter, tmp_path):
    (tmp_path / "a.ts").write_bytes(mpegts(tmp_path, 60))
    with (
        served(tmp_path, sends=0.6) as url,
        pytest.raises(BrokenVideo, match=r"a.ts broke off at \d.\d s: Input/output"),
    ):
        list(watch(adapter, f"{url}/a.ts", window=True))


# Pipes.


@pytest.fixture
def stdin() -> Iterator[int]:
    """A pipe into standard input; its end to write to."""
    before, (ours, theirs) = os.dup(0), os.pipe()
    os.dup2(ours, 0)
    os.close(ours)
    yield theirs
    os.dup2(before, 0)
    os.close(before)


def test_standard_input_is_read_to_its_end(adapter, tmp_path, stdin, capsys):
    def send() -> None:
        with open(stdin, "wb", buffering=0) as pipe:
            for piece in pieces(mpegts(tmp_path, 40), 20):
                pipe.write(piece)

    Thread(target=send, daemon=True).start()
    assert main(["watch", adapter, "-", "--window", "--json", "--every", "1", "--top-k", "2"]) == 0
    *rows, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert last["summary"]["seen"] == 40 and sum(last["summary"]["top"].values()) == 17
    assert rows[0].keys() == {"time", "top", "frames", "delay", "skipped", "problem_type"}
    assert rows[0]["time"] == pytest.approx(0.6)
    for before, now in pairwise(rows):
        assert now["time"] - before["time"] >= 1 - 1e-6 or now["top"][0][0] != before["top"][0][0]


def test_ctrl_c_ends_with_a_summary_also_while_nothing_comes(adapter, tmp_path, stdin, capsys, monkeypatch):
    show = Printer.show

    def shown(printer: Printer, event: Scores | Remark) -> None:
        show(printer, event)
        if "Waiting" in str(event):
            raise KeyboardInterrupt

    monkeypatch.setattr(Printer, "show", shown)
    monkeypatch.setattr("peft_aim.video.live.watch.LOOK", 0.01)
    os.write(stdin, mpegts(tmp_path, 30))
    assert main(["watch", adapter, "-", "--window", "--timeout", "0.2"]) == 130
    os.close(stdin)
    printed, error = capsys.readouterr()
    assert re.search(
        r"s watched: \d+ frames seen, \d+ taken, 0 of them skipped, 0 packets damaged\nMost probable: ", printed
    )
    assert "Waiting for standard input: nothing has come for" in error
    assert error.endswith("\npeft-aim watch: interrupted\n")


# Streams.


def test_a_stream_that_breaks_off_is_opened_again(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("peft_aim.video.live.reader.FIRST_PAUSE", 0.05)
    with Server([mpegts(tmp_path, 30), mpegts(tmp_path, 40)]) as server:
        watched = watch(adapter, server.url, window=True, retry=2, live=False)
        events = []
        with pytest.raises(
            BrokenVideo, match=r"broke off at .* s: it ended. It is not back \(--retry 2\). When .* refused"
        ):
            for event in watched:
                events.append(event)
    found, summary = scores_in(events), watched.summary
    assert (summary.seen, summary.taken, summary.skipped, summary.reconnections) == (70, 15 + 20, 0, 1)
    assert len(found) == 12 + 17  # after it is back, the window is filled anew
    restart = found[12].time - 0.6  # the first frame after that
    assert restart == pytest.approx(2.9 + summary.lost) and 0.05 < summary.lost < 2
    remarks = remarks_in(events)
    assert f"{server.url} broke off at 2.9 s: it ended. Trying again (--retry 2)." in remarks
    assert f"{server.url} is back after {summary.lost:.1f} s, which are lost. Scores start anew from here." in remarks
    assert f"Reconnections: 1, with {summary.lost:.1f} s lost" in str(summary)


def test_after_a_break_the_scores_of_a_causal_adapter_start_anew(causal_adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("peft_aim.video.live.reader.FIRST_PAUSE", 0.05)
    with (
        Server([mpegts(tmp_path, 30)] * 2) as server,
        pytest.raises(BrokenVideo, match="It is not back \\(--retry 1\\)"),
    ):
        found = []
        for event in watch(causal_adapter, server.url, retry=1, live=False):
            found += [event] if isinstance(event, Scores) else []
    assert [scores.top for scores in found[:15]] == [scores.top for scores in found[15:]] and len(found) == 30


def test_a_url_that_answers_nothing_is_an_error(adapter, capsys):
    with Server([], pause=None) as server:
        assert main(["watch", adapter, server.url, "--window", "--timeout", "0.2"]) == 1
    message = f"peft-aim watch: {server.url} cannot be opened as a video: nothing came for 0.2 s (--timeout).\n"
    assert capsys.readouterr().err.endswith(message)
    assert main(["watch", adapter, server.url, "--window"]) == 1
    assert f"{server.url} cannot be opened as a video: Connection refused.\n" in capsys.readouterr().err


def test_a_camera_that_is_not_there_is_an_error(adapter, capsys):
    for name in ("97", "/dev/video97"):
        assert main(["watch", adapter, name, "--window"]) == 1
        assert re.search(r"There is no camera /dev/video97\. (No camera is conn|The cameras)", capsys.readouterr().err)


# Options.


def test_other_rates_can_be_given(adapter, tmp_path):
    path = str(old(write(tmp_path / "a.mp4", count=22)))
    watched = watch(adapter, path, window=True, fps=10)
    introduction, *events = watched
    assert (
        str(introduction) == ("Taking 10 frames per second (in training, 5): the 4 frames of a clip are 0.4 s.")
        and len(events) == 19
    )


def test_an_adapter_without_a_rate_needs_one(adapter, tmp_path, capsys):
    """As earlier versions and peft-aim convert save them."""
    shutil.copytree(adapter, tmp_path / "adapter")
    config = AIMConfig.from_pretrained(tmp_path / "adapter")
    del config.video["rate"]
    config.save_pretrained(tmp_path / "adapter")
    path = str(old(write(tmp_path / "a.mp4", count=22)))
    assert main(["watch", str(tmp_path / "adapter"), path, "--window"]) == 1
    error = capsys.readouterr().err
    assert "does not record at which frame rate it was trained" in error
    assert "with --fps (fps in Python): the frame rate of its training videos divided by 2, the stride." in error
    assert main(["watch", str(tmp_path / "adapter"), path, "--window", "--fps", "5"]) == 0


@pytest.mark.parametrize("options", [["--top-k", "0"], ["--timeout", "0"], ["--retry", "-1"], ["--fps", "0"]])
def test_options_out_of_range_are_errors(adapter, tmp_path, capsys, options):
    assert main(["watch", adapter, str(write(tmp_path / "a.mp4")), "--window", *options]) == 1
    name = options[0].removeprefix("--").replace("-", "_")
    assert re.search(rf"{name}={options[1]}.* is out of range. Give ", capsys.readouterr().err)


def test_whoever_reads_the_output_may_stop(adapter, tmp_path, monkeypatch):
    """As in peft-aim watch ... | head -1."""
    ours, theirs = os.pipe()
    os.close(ours)
    monkeypatch.setattr(sys, "stdout", os.fdopen(theirs, "w"))
    try:
        path = str(old(write(tmp_path / "a.mp4", count=22)))
        assert main(["watch", adapter, path, "--window"]) == 0
    finally:
        sys.stdout.close()
