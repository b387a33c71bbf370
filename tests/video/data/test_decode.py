"""Decoding frames of intact and broken video files."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from videos import shown, write, write_broken, write_variable

from peft_aim.video.data import decode, pyav
from peft_aim.video.data.decode import BrokenVideo, open_video


@pytest.fixture(params=["pyav", "torchcodec"])
def reader(request, monkeypatch):
    """Each of the two libraries; PyAV reads the files that torchcodec does not open."""
    if request.param == "pyav":
        monkeypatch.setattr(decode, "torchcodec", lambda: None)
    elif decode.torchcodec() is None:
        pytest.skip("torchcodec is not installed, or finds no FFmpeg")


@pytest.mark.parametrize("indices", [[0, 1, 2], [11], [3, 3, 9], [10, 2, 6], list(range(12))])
def test_the_requested_frames_are_read(tmp_path, reader, indices):
    with open_video(write(tmp_path / "a.mp4")) as video:
        frames = video.read(indices)
        assert len(video.seconds) == 12
    assert frames.shape == (len(indices), 3, 32, 48)
    assert frames.dtype == torch.uint8
    assert shown(frames) == indices


def test_frames_have_presentation_times(tmp_path, reader):
    with open_video(write(tmp_path / "a.mp4", count=5, rate=10)) as video:
        assert np.allclose(video.seconds, [0.0, 0.1, 0.2, 0.3, 0.4])


def test_frames_at_irregular_times_are_counted_not_interpolated(tmp_path):
    with pyav.opened(write_variable(tmp_path / "a.mp4", gaps=[1, 7, 1, 3, 2])) as video:
        assert np.allclose(video.seconds, [0.0, 0.1, 0.8, 0.9, 1.2])
        assert shown(video.read([0, 2, 4, 1])) == [0, 2, 4, 1]


def test_only_the_necessary_frames_are_decoded(tmp_path, monkeypatch):
    decoded = []
    tolerant = pyav._tolerant
    monkeypatch.setattr(pyav, "_tolerant", lambda stream: (decoded.append(1) or frame for frame in tolerant(stream)))
    with pyav.opened(write(tmp_path / "a.mp4", count=60, key_every=10)) as video:
        assert shown(video.read([0, 41])) == [0, round(41 * 20 % 256 / 20)]
    assert len(decoded) <= 8  # of 60; B frames need a few more


def test_truncated_videos_have_the_frames_that_are_left(tmp_path, reader):
    path = tmp_path / "a.mkv"  # a container without an index at the end
    data = write(path, count=60, size=(64, 64)).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with open_video(path) as video:
        count = len(video.seconds)
        assert 5 < count < 60
        assert video.read([0, count - 1]).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("what", ["empty", "note", "truncated"])
def test_files_that_are_not_videos_are_named(tmp_path, reader, what):
    path = write_broken(tmp_path)[what]
    with pytest.raises(BrokenVideo, match=f"{what}.mp4 cannot be read as a video"), open_video(path):
        pass


def test_missing_files_are_broken_too(tmp_path, reader):
    with pytest.raises(BrokenVideo, match="No such file"), open_video(tmp_path / "nowhere.mp4"):
        pass


def test_files_with_audio_only_are_broken(tmp_path, reader):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BrokenVideo, match="has no video stream"), open_video(path):
        pass


def test_pyav_reads_what_torchcodec_cannot(tmp_path, monkeypatch):
    class Decoders:
        class VideoDecoder:
            metadata = type("Metadata", (), {"average_fps": 10.0})

            def __init__(self, path: str, num_ffmpeg_threads: int) -> None:
                if "bad" in Path(path).name:
                    raise RuntimeError("no index")

            def __len__(self) -> int:
                return 12

            def get_frames_at(self, indices: list[int]) -> None:
                raise RuntimeError("damaged packet")

    monkeypatch.setattr(decode, "torchcodec", lambda: Decoders)
    for name in ("bad.mp4", "good.mp4"):
        with open_video(write(tmp_path / name)) as video:
            assert shown(video.read([1, 4])) == [1, 4]


def test_a_damaged_frame_is_replaced_by_the_one_before_and_shifts_no_others(tmp_path, monkeypatch):
    tolerant, path = pyav._tolerant, write(tmp_path / "a.mp4")
    with pyav.opened(path) as video:
        times = video._times
        damaged = next(i for i in range(2, 10) if times[i] not in video._keys and times[i + 1] not in video._keys)
        monkeypatch.setattr(pyav, "_tolerant", lambda stream: (f for f in tolerant(stream) if f.pts != times[damaged]))
        around = [damaged - 1, damaged, damaged + 1, damaged + 2]
        assert shown(video.read(around)) == [damaged - 1, damaged - 1, damaged + 1, damaged + 2]
        assert shown(video.read([damaged])) == [damaged - 1]
        monkeypatch.setattr(pyav, "_tolerant", lambda stream: (f for f in tolerant(stream) if f.pts in times[:9]))
        assert shown(video.read([8, 9, 10, 11])) == [8, 8, 8, 8]


def test_titles_may_have_any_encoding(tmp_path, reader):
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "caf@"
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for value in (0, 100):
            image = np.full((32, 48, 3), value, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert b"caf@" in data
    path.write_bytes(data.replace(b"caf@", "café".encode("latin-1")))
    with open_video(path) as video:
        assert shown(video.read([0, 1])) == [0, 5]
