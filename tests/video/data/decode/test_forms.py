"""Every form of a video shows what plain decoding shows: the same frames, in the same order, at the same times."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.containers.forms import FORMS, H264, RATE, Encoded, displayed
from benchmarks.containers.numbered import numbered, numbers
from benchmarks.containers.plain import plainly_decoded
from peft_aim.video.data.decode import open_video
from peft_aim.video.data.decode.indexed import IndexedVideo
from peft_aim.video.data.decode.plain import PlainVideo

COUNT = 48


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each form, written once."""
    folder, written = tmp_path_factory.mktemp("forms"), {}

    def file(name: str) -> Path:
        if name not in written:
            path = folder / f"{len(written)}{FORMS[name].suffix}"
            FORMS[name].write(numbered(COUNT), path)
            written[name] = path
        return written[name]

    return file


@pytest.mark.parametrize("form", FORMS)
def test_all_frames_are_read_in_order(files, form):
    with open_video(files(form)) as video:
        assert numbers(video.read(range(len(video.seconds)))) == list(range(COUNT))
        assert not str(video.damage) and not video.hdr


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("indices", [[31], [45, 3, 30, 2, 0, 47, 12, 11, 3], [0, 1, 46, 47]])
def test_any_frames_are_read(files, form, indices):
    with open_video(files(form)) as video:
        assert numbers(video.read(indices)) == indices
        assert numbers(video.read(indices[::-1])) == indices[::-1]


@pytest.mark.parametrize("form", FORMS)
def test_frames_have_their_times(files, form):
    with open_video(files(form)) as video:
        assert np.allclose(video.seconds, np.arange(COUNT) / FORMS[form].rate, atol=2e-3)


@pytest.mark.parametrize("form", [name for name in FORMS if not name.startswith(("mp4, display", "mp4 after"))])
def test_these_forms_decode_plainly_to_all_frames(files, form):
    """The forms are what they should be, whatever this package makes of them."""
    assert numbers(plainly_decoded(files(form))[0]) == list(range(COUNT))


def test_clips_cut_by_stream_copy_hide_frames(files):
    with av.open(str(files("mp4, cut by stream copy"))) as container:
        hidden = [packet.is_discard for packet in container.demux(video=0) if packet.size]
    assert sum(hidden) > 0 and len(hidden) > COUNT


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        *((name, IndexedVideo) for name in ("mp4", "mkv", "webm, vp9", "mov, prores")),
        *((name, PlainVideo) for name in ("ts", "mpg, mpeg1", "avi, palette", "webm, vp8")),
    ],
)
def test_seeking_is_used_only_where_the_container_tells_the_frames(files, form, kind):
    with open_video(files(form)) as video:
        assert type(video) is kind


def test_a_seek_that_leads_too_far_is_repeated_from_farther_back(files):
    with open_video(files("mp4")) as video:
        seek, keys = video._seeker._seek, video._seeker._index.keys
        late = {keys[2]: keys[3], keys[1]: keys[3]}  # as MPEG-TS has it, where times are those of other packets
        video._seeker._seek = lambda key: seek(late.get(key, key))
        assert numbers(video.read([30, 40, 5])) == [30, 40, 5]
        assert video._plain is None


def test_a_beginning_that_cannot_be_decoded_is_not_counted(files, tmp_path):
    """An open group of pictures begins with pictures that refer to the one before, which a cut has removed."""
    path = tmp_path / "cut.mkv"
    with av.open(str(files("mp4, hevc"))) as container, av.open(str(path), "w") as output:
        copy = output.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        second = [i for i, packet in enumerate(packets) if packet.is_keyframe][1]
        for packet in packets[second:]:
            packet.stream = copy
            output.mux(packet)
    shown = numbers(plainly_decoded(path)[0])
    assert len(shown) < len(packets) - second
    with open_video(path) as video:
        assert len(video.seconds) == len(shown) and numbers(video.read(range(len(shown)))) == shown


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("indices", [[0, 2, 4, 5], [3]])
def test_variable_frame_rates_keep_their_times(tmp_path, suffix, indices):
    times = [0, 1, 2, 202, 203, 204]  # a still of 20 seconds
    path = tmp_path / f"a{suffix}"
    Encoded()(numbered(6), path, times)
    with open_video(path) as video:
        assert np.allclose(video.seconds, [time / RATE for time in times], atol=2e-3)
        assert numbers(video.read(indices)) == indices


def test_long_gaps_are_cut_from_broadcasts_only(tmp_path):
    """The clock of a transport stream may jump; FFmpeg continues after 10 seconds."""
    path = tmp_path / "a.ts"
    Encoded()(numbered(6), path, [0, 1, 2, 302, 303, 304])
    with open_video(path) as video:
        assert np.allclose(video.seconds, np.arange(6) / RATE)


def test_a_clock_that_starts_again_goes_on(files):
    for form in ("ts, two in one", "mpg, two in one"):
        times = plainly_decoded(files(form))[1]
        assert any(now < before for before, now in pairwise(times))
        with open_video(files(form)) as video:
            assert all(now > before for before, now in pairwise(video.seconds))


@pytest.mark.parametrize("form", ["ts", "avi, mjpeg"])
def test_many_frames_are_decoded_twice_rather_than_kept(files, monkeypatch, form):
    monkeypatch.setattr("peft_aim.video.data.decode.plain.KEPT", 100_000)
    with open_video(files(form)) as video:
        assert video._kept is None
        assert numbers(video.read([7, 40, 7, 0])) == [7, 40, 7, 0]


def test_a_display_matrix_is_applied_as_ffmpeg_does(tmp_path):
    """Each corner of a picture has its own color; PyAV's filters turn it as ``ffmpeg -autorotate`` does."""
    image = np.zeros((32, 64, 3), dtype=np.uint8)
    image[:16, :32], image[:16, 32:], image[16:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    filters = {
        "zero": "null",
        "horizontal flip": "hflip",
        "vertical flip": "vflip",
        "transpose": "transpose=cclock_flip",
        "transverse": "transpose=clock_flip",
        "rotation by 90": "transpose=clock",
        "rotation by 180": "hflip,vflip",
        "rotation by 270": "transpose=cclock",
    }
    for name, chain in filters.items():
        path = tmp_path / f"{name}.mp4"
        displayed(name)(image[None].repeat(2, axis=0), path)
        with av.open(str(path)) as container:
            stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
        expected = filtered(stored, chain)
        with open_video(path) as video:
            assert video.size == expected.shape[:2]
            assert np.array_equal(video.read([0])[0].permute(1, 2, 0).numpy(), expected), name


def filtered(image: np.ndarray, chain: str) -> np.ndarray:
    """Apply FFmpeg's filters to a picture."""
    frame, graph = av.VideoFrame.from_ndarray(image, format="rgb24"), av.filter.Graph()
    last = graph.add_buffer(width=image.shape[1], height=image.shape[0], format="rgb24", time_base=Fraction(1, 10))
    for name, _, options in (step.partition("=") for step in chain.split(",")):
        following = graph.add(name, options) if options else graph.add(name)
        last.link_to(following)
        last = following
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull().to_ndarray(format="rgb24")


def test_cover_art_is_never_the_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as output:
        cover = output.add_stream("mjpeg", rate=RATE)
        cover.height, cover.width, cover.pix_fmt = 96, 128, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        stream = output.add_stream("libx264", rate=RATE, options=H264)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        output.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(1)[0], format="rgb24")))
        output.mux(cover.encode())
        for image in numbered(COUNT):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    path.write_bytes(_cover_first(path.read_bytes()))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
        assert container.streams.video[0].disposition & av.stream.Disposition.attached_pic
    with open_video(path) as video:
        assert numbers(video.read(range(len(video.seconds)))) == list(range(COUNT))


def _cover_first(data: bytes) -> bytes:
    """Move the box "udta", which holds the cover, before the first "trak"."""

    def box(name: bytes) -> tuple[int, int]:
        begin = data.rindex(name) - 4
        return begin, begin + int.from_bytes(data[begin : begin + 4], "big")

    (track, _), (begin, end) = box(b"trak"), box(b"udta")
    assert track < begin
    return data[:track] + data[begin:end] + data[track:begin] + data[end:]


@pytest.mark.parametrize(("transfer", "hdr"), [(16, True), (18, True), (1, False)])
def test_hdr_is_noticed(tmp_path, transfer, hdr):
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=RATE, options=H264)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        stream.codec_context.color_trc = transfer
        for image in numbered(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    with open_video(tmp_path / "a.mp4") as video:
        assert video.hdr == hdr
