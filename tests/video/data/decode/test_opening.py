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

from benchmarks.containers.forms import H264, Encoded
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


def without(path, *lost):
    """Remove packets from a video, by their number in the order of decoding."""
    target = path.with_name(f"without-{path.name}")
    with av.open(str(path)) as container, av.open(str(target), "w") as output:
        copy = output.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(packet for packet in container.demux(video=0) if packet.size):
            if number not in lost:
                packet.stream = copy
                output.mux(packet)
    return target


def test_where_decoding_shows_other_frames_than_the_index_plain_decoding_takes_over(tmp_path):
    """Times that are those of decoding, as raw streams get when they are put into a container."""
    path = tmp_path / "a.mp4"
    Encoded(options={**H264, "g": "250"})(numbered(40), tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as container, av.open(str(path), "w") as output:
        copy = output.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(packet for packet in container.demux(video=0) if packet.size):
            packet.pts = packet.dts = 1024 * number
            packet.stream = copy
            output.mux(packet)
    plain = plainly_decoded(path)[0]
    assert numbers(plain) == list(range(40))
    for indices in ([39], [3, 20, 21, 22], range(40)):
        with open_video(path) as video:
            assert numbers(video.read(indices)) == list(indices)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_that_are_missing_are_not_counted_twice(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Encoded("libx265", {"x265-params": "log-level=none:keyint=12:bframes=2:b-adapt=0"})(numbered(48), path)
    path = without(path, 14, 15)  # the second and third packet of a group, to which others refer
    plain = plainly_decoded(path)[0]
    with open_video(path) as video:
        told = len(video.seconds)
        frames = video.consistently(lambda video: video.read(range(len(video.seconds))))
        assert len(video.seconds) == len(plain) < told
        assert torch.equal(frames, plain)
        assert numbers(video.read([told - 1])) == numbers(plain)[-1:]  # beyond the end


def test_a_function_of_a_healthy_video_is_called_once(tmp_path):
    calls = []
    with open_video(write(tmp_path / "a.mp4")) as video:
        assert video.consistently(lambda video: calls.append(len(video.seconds)) or "made") == "made"
    assert calls == [12]


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
    message = (
        r"None of the frames of .*a.mp4 can be decoded, the first at 0.00 s \(byte \d+\): Invalid data found when "
        "processing input."
    )
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
