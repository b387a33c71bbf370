"""Decoding frames of intact and broken video files, and of folders of images."""

from __future__ import annotations

import re
import weakref
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import av
import numpy as np
import pytest
import torch
from PIL import Image
from videos import shown, write, write_broken

from benchmarks.containers.forms import Encoded
from benchmarks.containers.numbered import numbered, numbers
from benchmarks.containers.plain import plainly_decoded
from peft_aim.video.data.decode import BrokenVideo, open_video, seeking


@pytest.mark.parametrize("indices", [[0, 1, 2], [11], [3, 3, 9], [10, 2, 6], list(range(12))])
def test_the_requested_frames_are_read(tmp_path, indices):
    with open_video(write(tmp_path / "a.mp4")) as video:
        frames = video.read(indices)
        assert len(video.seconds) == 12
    assert frames.shape == (len(indices), 3, 32, 48)
    assert frames.dtype == torch.uint8
    assert shown(frames) == indices


def test_frames_have_presentation_times(tmp_path):
    with open_video(write(tmp_path / "a.mp4", count=5, rate=10)) as video:
        assert np.allclose(video.seconds, [0.0, 0.1, 0.2, 0.3, 0.4])


def test_only_the_necessary_frames_are_decoded(tmp_path, monkeypatch):
    count, decoded = [], seeking.decoded
    monkeypatch.setattr(seeking, "decoded", lambda *args: (count.append(1) or frame for frame in decoded(*args)))
    with open_video(write(tmp_path / "a.mp4", count=60, key_every=10)) as video:
        assert shown(video.read([0, 41])) == [0, round(41 * 20 % 256 / 20)]
    assert len(count) <= 8  # of 60; B frames need a few more


def test_each_frame_is_reduced_as_soon_as_it_is_decoded(tmp_path):
    """A clip of a large video is never in memory at full size."""
    alive, most = set(), []

    def reduce(frame: torch.Tensor) -> torch.Tensor:
        alive.add(number := len(most))
        most.append(len(alive))
        weakref.finalize(frame, alive.discard, number)
        return frame[:, ::4, ::4].clone()

    with open_video(write(tmp_path / "a.mp4", count=12)) as video:
        frames = video.read([*range(12), 3], reduce)
    assert frames.shape == (13, 3, 8, 12) and shown(frames) == [*range(12), 3]
    assert len(most) == 12 and max(most) <= 2


def test_truncated_videos_have_the_frames_that_are_left(tmp_path):
    path = tmp_path / "a.mkv"  # a container without an index at the end
    data = write(path, count=60, size=(64, 64)).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with open_video(path) as video:
        count = len(video.seconds)
        assert 5 < count < 60
        assert video.read([0, count - 1]).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("what", ["empty", "note", "truncated"])
def test_files_that_are_not_videos_are_named(tmp_path, what):
    path = write_broken(tmp_path)[what]
    reason = rf"{what}.mp4 cannot be read as a video: Invalid data found when processing input \(moov atom not found\)"
    for _ in range(2):  # FFmpeg logs it every time
        with pytest.raises(BrokenVideo, match=reason), open_video(path):
            pass


def test_missing_files_are_broken_too(tmp_path):
    with pytest.raises(BrokenVideo, match="No such file"), open_video(tmp_path / "nowhere.mp4"):
        pass


def test_files_with_audio_only_are_broken(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BrokenVideo, match="has no video stream"), open_video(path):
        pass


def test_a_damaged_frame_is_replaced_by_the_one_before_and_shifts_no_others(tmp_path, monkeypatch):
    decoded, path = seeking.decoded, write(tmp_path / "a.mp4")
    with open_video(path) as video:
        times, keys = video._times, video._seeker._keys
    damaged = next(i for i in range(2, 10) if times[i] not in keys and times[i + 1] not in keys)

    def losing(lost):
        return lambda *args: (frame for frame in decoded(*args) if frame.pts not in lost)

    monkeypatch.setattr(seeking, "decoded", losing({times[damaged]}))
    with open_video(path) as video:
        around = [damaged - 1, damaged, damaged + 1, damaged + 2]
        assert shown(video.read(around)) == [damaged - 1, damaged - 1, damaged + 1, damaged + 2]
        assert shown(video.read([damaged])) == [damaged - 1]
    monkeypatch.setattr(seeking, "decoded", losing(set(times[9:])))
    with open_video(path) as video:
        assert shown(video.read([8, 9, 10, 11])) == [8, 8, 8, 8]
        assert "3 of 4 frames of" in str(video.damage)


def test_a_damaged_part_is_decoded_once_however_many_of_its_frames_are_wanted(tmp_path, monkeypatch):
    count, decoded, path = [], seeking.decoded, write(tmp_path / "a.mp4", count=60, key_every=10)
    with open_video(path) as video:
        lost = set(video._times[20:30]) | set(video._times[50:])
    found = lambda *args: (frame for frame in decoded(*args) if count.append(1) or frame.pts not in lost)
    monkeypatch.setattr(seeking, "decoded", found)
    with open_video(path) as video:
        assert shown(video.read(range(20, 30))) == [shown(video.read([19]))[0]] * 10
        assert shown(video.read(range(50, 60))) == [shown(video.read([49]))[0]] * 10
    assert len(count) < 150  # of 60 frames, 20 of which are damaged


@pytest.mark.parametrize("how", ["zeros", "garbage", "truncated"])
def test_a_video_of_which_much_is_damaged_is_named(tmp_path, how):
    path = tmp_path / "a.mp4"
    Encoded(flags={"movflags": "faststart"})(numbered(60), path)
    data = path.read_bytes()
    half = len(data) // 2
    noise = np.random.default_rng(0).integers(0, 256, len(data) - half, dtype=np.uint8).tobytes()
    path.write_bytes(data[:half] + {"zeros": bytes(len(noise)), "garbage": noise, "truncated": b""}[how])
    with open_video(path) as video:
        frames = video.read(range(len(video.seconds)))
    message = str(video.damage)
    assert re.fullmatch(
        rf"\d+ of \d+ frames of {path} cannot be decoded, the first at \d\.\d\d s \(byte \d+\): "
        "Invalid data found when processing input.",
        message,
    )
    if how != "garbage":  # which no index tells from pictures
        plain = plainly_decoded(path)[0]
        assert 10 < len(frames) < 20 and len(frames) == len(plain)
        assert torch.equal(frames[:-1], plain[:-1])  # FFmpeg patches up the last one, of which a part is left


def test_a_little_damage_is_not_named(tmp_path):
    path = tmp_path / "a.mp4"
    Encoded(flags={"movflags": "faststart"})(numbered(60), path)
    data = path.read_bytes()
    path.write_bytes(data[:-200])
    with open_video(path) as video:
        assert 50 < len(video.seconds) < 60 and not str(video.damage)


def test_a_video_of_which_nothing_can_be_decoded_is_broken(tmp_path):
    path = tmp_path / "a.mp4"
    Encoded(flags={"movflags": "faststart"})(numbered(10), path)
    data = path.read_bytes()
    begin = data.index(b"mdat") + 4
    path.write_bytes(data[:begin] + bytes(len(data) - begin))
    message = r"a.mp4 has no video frames, the first at 0.00 s \(byte \d+\): Invalid data found when processing input"
    with pytest.raises(BrokenVideo, match=message), open_video(path):
        pass


def test_a_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("12:30:15.mp4", "a:b.mp4"):
        with open_video(write(tmp_path / name).relative_to(tmp_path)) as video:
            assert shown(video.read([5])) == [5]


def test_a_url_is_read(tmp_path):
    write(tmp_path / "a.mp4")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with open_video(f"http://127.0.0.1:{server.server_port}/a.mp4") as video:
            assert shown(video.read([5])) == [5]
    finally:
        server.shutdown()
        server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


# Folders of images.


def write_images(folder, count=12, name="{}.png"):
    folder.mkdir(parents=True)
    for i, image in enumerate(numbered(count)):
        Image.fromarray(image).save(folder / name.format(i + 1))
    return folder


@pytest.mark.parametrize("name", ["{}.png", "img_{:05}.jpg", "frame{}.bmp"])
def test_a_folder_of_images_is_a_video(tmp_path, name):
    folder = write_images(tmp_path / "a", name=name)
    (folder / "readme.txt").write_text("no image")
    (folder / "._1.png").write_bytes(b"left behind by macOS")
    with open_video(folder, fps=4) as video:
        assert numbers(video.read([0, 11, 3, 3])) == [0, 11, 3, 3]
        assert video.seconds == [i / 4 for i in range(12)] and video.size == (96, 128)


def test_images_with_16_bits_are_scaled(tmp_path):
    (tmp_path / "a").mkdir()
    gray = np.full((96, 128), 20000, dtype=np.uint16)
    for name in ("1.png", "2.tiff"):
        Image.fromarray(gray).save(tmp_path / "a" / name)
    with open_video(tmp_path / "a") as video:
        assert video.read([0, 1]).float().mean((1, 2, 3)).tolist() == pytest.approx([20000 / 257] * 2, abs=1)


def test_an_image_that_cannot_be_read_is_replaced_by_the_one_before(tmp_path):
    folder = write_images(tmp_path / "a")
    (folder / "5.png").write_bytes(b"")
    with open_video(folder) as video:
        assert numbers(video.read([2, 4, 6])) == [2, 3, 6]
        assert str(video.damage).startswith(f"1 of 3 frames of {folder} cannot be decoded, the first in 5.png: ")
    (folder / "1.png").write_bytes(b"")
    with open_video(folder) as video:
        assert numbers(video.read([0, 1])) == [1, 1]


def test_folders_without_images_are_broken(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(BrokenVideo, match="a is a folder without images"), open_video(tmp_path / "a"):
        pass
    (tmp_path / "a" / "1.png").write_bytes(b"none")
    with pytest.raises(BrokenVideo, match=r"None of the 1 images in .* can be read, the first in 1.png"):
        open_video(tmp_path / "a").__enter__()


def test_titles_may_have_any_encoding(tmp_path):
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
