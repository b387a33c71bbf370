"""The forms in which people have videos: containers, codecs, and what phones, editors and recorders do to them.

Each form is a function that writes pictures, uint8 ``(n, H, W, 3)``, to a file that shows exactly these.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE = 10  # frames per second
LEAD = 17  # pictures before a cut, in the middle of a group of pictures
H264 = {"preset": "ultrafast", "crf": "8", "g": "12", "bf": "2", "x264-params": "b-adapt=0:bframes=2:scenecut=0"}


@dataclass(frozen=True)
class Form:
    """A form of a video.

    Attributes:
        container: Name of the container.
        codec: Name of the codec, as FFmpeg has it.
        suffix: Suffix of the file.
        write: Function that writes pictures to a path.
        rate: Frames per second that it is read with.
    """

    container: str
    codec: str
    suffix: str
    write: Callable[[np.ndarray, Path], None]
    rate: int = RATE


@dataclass(frozen=True)
class Encoded:
    """An encoding of pictures.

    Attributes:
        codec: Name of FFmpeg's encoder.
        options: Options of the encoder.
        container: Name of FFmpeg's muxer; None follows from the suffix.
        pixels: Pixel format.
        flags: Options of the muxer.
        rate: Frames per second.
    """

    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: H264)
    container: str | None = None
    pixels: str = "yuv420p"
    flags: dict[str, str] = field(default_factory=dict)
    rate: int = RATE

    def __call__(self, images: np.ndarray, path: Path, times: Iterable[int] | None = None) -> None:
        """Write the pictures; ``times`` are in units of 1 / rate seconds, 0, 1, ... by default."""
        with av.open(str(path), "w", format=self.container, options=self.flags) as output:
            stream = output.add_stream(self.codec, rate=self.rate, options=self.options)
            stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], self.pixels
            stream.codec_context.time_base = Fraction(1, self.rate)
            for image, time in zip(images, times or range(len(images)), strict=True):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=self.pixels)
                frame.pts, frame.time_base = time, Fraction(1, self.rate)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())


def copied(source: Path, path: Path, start: int = 0, **options: Any) -> None:
    """Copy the packets of a video to another container, as ``ffmpeg -c copy`` does.

    Args:
        source: The video.
        path: The file to write.
        start: Number of pictures before the first one that is shown: these are kept, but hidden by an edit list.
        options: Options of ``av.open``.
    """
    with av.open(str(source)) as container, av.open(str(path), "w", **options) as output:
        stream = container.streams.video[0]
        copy = output.add_stream_from_template(stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        cut = sorted(packet.pts for packet in packets)[start]
        key = max(packet.pts for packet in packets if packet.is_keyframe and packet.pts <= cut)
        first = next(i for i, packet in enumerate(packets) if packet.pts == key)
        for packet in packets[first:]:
            packet.pts, packet.dts, packet.stream = packet.pts - cut, packet.dts - cut, copy
            output.mux(packet)


def via(encode: Encoded, change: Callable[[Path, Path], None], suffix: str = ".mp4") -> Callable:
    """Return a form that encodes to a file beside, and changes that."""

    def write(images: np.ndarray, path: Path) -> None:
        source = path.with_name(f"{path.stem}-source{suffix}")
        encode(images, source)
        change(source, path)
        source.unlink()

    return write


def cut_start(images: np.ndarray, path: Path) -> None:
    """Write a clip that was cut from a longer video by stream copy, ``ffmpeg -ss 1.7 -i a.mp4 -c copy``."""
    before = images[:1].repeat(LEAD, axis=0)[:, ::-1]
    options = {"options": {"avoid_negative_ts": "disabled"}}
    longer = via(Encoded(), lambda source, target: copied(source, target, start=LEAD, **options))
    longer(np.concatenate([before, images]), path)


def cut_end(images: np.ndarray, path: Path) -> None:
    """Write a video that was trimmed on a phone: its edit list ends before its pictures do."""
    Encoded()(np.concatenate([images, images[:, ::-1], images]), path)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # after version, flags and number of entries
    movie = data.index(b"mvhd") + 16  # time scale of edit lists
    (scale,) = struct.unpack(">I", data[movie : movie + 4])
    data[at : at + 4] = struct.pack(">I", len(images) * scale // RATE)
    path.write_bytes(data)


MATRICES = {  # rows (a, b) and (c, d) of the display matrix of a track
    "zero": (0, 0, 0, 0),
    "horizontal flip": (-1, 0, 0, 1),
    "vertical flip": (1, 0, 0, -1),
    "transpose": (0, 1, 1, 0),
    "transverse": (0, -1, -1, 0),
    "rotation by 90": (0, 1, -1, 0),
    "rotation by 180": (-1, 0, 0, -1),
    "rotation by 270": (0, -1, 1, 0),
}
STORED = {  # how the pictures are stored so that they are shown upright
    "zero": lambda images: images,
    "horizontal flip": lambda images: images[:, :, ::-1],
    "vertical flip": lambda images: images[:, ::-1],
    "transpose": lambda images: images.swapaxes(1, 2),
    "transverse": lambda images: images.swapaxes(1, 2)[:, ::-1, ::-1],
    "rotation by 90": lambda images: np.rot90(images, 1, (1, 2)),
    "rotation by 180": lambda images: np.rot90(images, 2, (1, 2)),
    "rotation by 270": lambda images: np.rot90(images, 3, (1, 2)),
}


def displayed(name: str) -> Callable:
    """Return the form whose track has a display matrix."""

    def write(images: np.ndarray, path: Path) -> None:
        Encoded()(np.ascontiguousarray(STORED[name](images)), path)
        data = bytearray(path.read_bytes())
        at = data.index(b"tkhd") + 44
        a, b, c, d = (value * 65536 for value in MATRICES[name])
        data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0 if name == "zero" else 1 << 30)
        path.write_bytes(data)

    return write


def restarted(encode: Encoded) -> Callable:
    """Return the form of two files in one, ``cat a.ts b.ts``: its clock starts again in the middle."""

    def write(images: np.ndarray, path: Path) -> None:
        half, data = len(images) // 2, b""
        for part in (images[:half], images[half:]):
            encode(part, path)
            data += path.read_bytes()
        path.write_bytes(data)

    return write


def second_stream(images: np.ndarray, path: Path) -> None:
    """Write a video after another stream of a single picture, a thumbnail."""
    with av.open(str(path), "w") as output:
        thumbnail = output.add_stream("mjpeg", rate=RATE)
        thumbnail.height, thumbnail.width, thumbnail.pix_fmt = 16, 16, "yuvj420p"
        stream = output.add_stream("libx264", rate=RATE, options=H264)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        output.mux(thumbnail.encode(av.VideoFrame.from_ndarray(images[0, :16, :16], format="rgb24")))
        output.mux(thumbnail.encode())
        for image in images:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())


def without_times(images: np.ndarray, path: Path) -> None:
    """Write a Matroska file all of whose pictures have the time 0."""

    def change(source: Path, target: Path) -> None:
        with av.open(str(source)) as container, av.open(str(target), "w", format="matroska") as output:
            stream = container.streams.video[0]
            copy = output.add_stream_from_template(stream)
            for packet in container.demux(stream):
                if packet.size:
                    packet.pts, packet.dts, packet.stream = 0, 0, copy
                    output.mux(packet)

    via(Encoded(options={**H264, "bf": "0", "x264-params": "bframes=0"}), change)(images, path)


def palette(images: np.ndarray, path: Path) -> None:
    """Write an AVI file with a palette that only the first packet has, as ImageJ does."""
    colors, indices = np.unique(images.reshape(-1, 3) // 16 * 16, axis=0, return_inverse=True)
    table = np.zeros((256, 4), dtype=np.uint8)
    table[: len(colors), :3] = colors[:, ::-1]  # blue, green, red
    shaped = indices.reshape(images.shape[:3]).astype(np.uint8)
    with av.open(str(path), "w", format="avi") as output:
        stream = output.add_stream("rawvideo", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "pal8"
        for image in shaped:
            frame = av.VideoFrame(image.shape[1], image.shape[0], "pal8")
            frame.planes[0].update(_padded(image, frame.planes[0].line_size))
            frame.planes[1].update(table.tobytes())
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def _padded(image: np.ndarray, line_size: int) -> bytes:
    return np.pad(image, ((0, 0), (0, line_size - image.shape[1]))).tobytes()


PLAIN = {"g": "18", "bf": "2", "qscale": "2"}
VP = {"crf": "8", "b": "0", "g": "12", "deadline": "good", "cpu-used": "5", "lag-in-frames": "16", "auto-alt-ref": "1"}
ONE_GROUP = {**H264, "g": "250"}
OPEN = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:bframes=3:open-gop=1:b-adapt=0"}
STRAIGHT = {**H264, "bf": "0", "x264-params": "bframes=0"}

FORMS: dict[str, Form] = {
    "mp4": Form("mp4", "h264", ".mp4", Encoded()),
    "mp4 in one group of pictures": Form("mp4", "h264", ".mp4", Encoded(options=ONE_GROUP)),
    "mp4, cut by stream copy": Form("mp4", "h264", ".mp4", cut_start),
    "mp4, trimmed on a phone": Form("mp4", "h264", ".mp4", cut_end),
    **{f"mp4, display matrix: {name}": Form("mp4", "h264", ".mp4", displayed(name)) for name in MATRICES},
    "mp4, fragmented": Form(
        "mp4", "h264", ".mp4", Encoded(flags={"movflags": "frag_keyframe+empty_moov+default_base_moof"})
    ),
    "mp4 after a thumbnail": Form("mp4", "h264", ".mp4", second_stream),
    "mp4, hevc": Form("mp4", "hevc", ".mp4", Encoded("libx265", OPEN)),
    "mp4, av1": Form("mp4", "av1", ".mp4", Encoded("libsvtav1", {"preset": "12", "crf": "20", "g": "12"})),
    "mp4, mpeg4": Form("mp4", "mpeg4", ".mp4", Encoded("mpeg4", PLAIN)),
    "3gp": Form("3gp", "mpeg4", ".3gp", Encoded("mpeg4", PLAIN)),
    "mov, prores": Form("mov", "prores", ".mov", Encoded("prores_ks", {}, pixels="yuv422p10le")),
    "mkv": Form("matroska", "h264", ".mkv", Encoded()),
    "mkv without times": Form("matroska", "h264", ".mkv", without_times),
    "webm, vp8": Form("webm", "vp8", ".webm", Encoded("libvpx", VP)),
    "webm, vp9": Form("webm", "vp9", ".webm", Encoded("libvpx-vp9", VP)),
    "webm, live": Form("webm", "vp8", ".webm", Encoded("libvpx", VP, flags={"live": "1"})),
    "avi, mpeg4 with B frames": Form("avi", "mpeg4", ".avi", Encoded("mpeg4", PLAIN)),
    "avi, h264 with B frames": Form("avi", "h264", ".avi", Encoded()),
    "avi, mjpeg": Form("avi", "mjpeg", ".avi", Encoded("mjpeg", {"qscale": "2"}, pixels="yuvj420p")),
    "avi, palette": Form("avi", "rawvideo", ".avi", palette),
    "avi, 1 bit": Form("avi", "rawvideo", ".avi", Encoded("rawvideo", {}, pixels="monow")),
    "ts": Form("mpegts", "h264", ".ts", Encoded(options={**H264, "g": "30"})),
    "ts in one group of pictures": Form("mpegts", "h264", ".ts", Encoded(options=ONE_GROUP)),
    "m2ts": Form("mpegts", "h264", ".m2ts", Encoded(flags={"mpegts_m2ts_mode": "1"})),
    "ts, two in one": Form("mpegts", "h264", ".ts", restarted(Encoded())),
    "mpg, mpeg1": Form("mpeg", "mpeg1video", ".mpg", Encoded("mpeg1video", PLAIN, rate=25), 25),
    "vob, mpeg2": Form("vob", "mpeg2video", ".vob", Encoded("mpeg2video", PLAIN)),
    "mpg, two in one": Form("mpeg", "mpeg1video", ".mpg", restarted(Encoded("mpeg1video", PLAIN, rate=25)), 25),
    "wmv": Form("asf", "wmv2", ".wmv", Encoded("wmv2", {"qscale": "2", "g": "12"})),
    "flv": Form("flv", "h264", ".flv", Encoded()),
    "gif": Form("gif", "gif", ".gif", Encoded("gif", {}, pixels="rgb8")),
    "raw h264": Form("h264", "h264", ".h264", Encoded(), 25),
    "raw h265": Form("hevc", "hevc", ".h265", Encoded("libx265", OPEN, container="hevc"), 25),
}
