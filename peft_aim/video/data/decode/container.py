"""Open a container with FFmpeg, find its video stream, and decode that plainly, from where it stands to the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from os import path as paths

import av

from peft_aim.video.data.decode.damage import Damage
from peft_aim.video.data.decode.video import BrokenVideo

# Titles may have any encoding; from PyAV 19 on, they are always read.
ANY_TITLE = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

PQ, HLG = 16, 18  # the transfer characteristics of HDR, ITU-T H.273


@contextmanager
def opened(path: str | PathLike) -> Iterator[av.VideoStream]:
    """Open a video file or URL and return its video stream.

    Raises:
        BrokenVideo: If it has no video stream, or FFmpeg raises any error.
    """
    try:
        with av.open(address(path), **ANY_TITLE) as container:
            stream = best_stream(container)
            if stream is None:
                raise BrokenVideo(f"{path} has no video stream.")
            stream.thread_type = "NONE"  # data loaders already run several processes
            yield stream
    except av.error.FFmpegError as error:
        raise BrokenVideo(f"{path} cannot be read as a video: {_reason(path, error)}.") from error


def address(path: str | PathLike) -> str:
    """Return what FFmpeg opens a path by: it would take "12:30:15.mp4" for a protocol.

    Example:
        >>> address("12:30:15.mp4"), address("https://example.org/a.mp4")
        ('file:12:30:15.mp4', 'https://example.org/a.mp4')
    """
    text = str(path)
    return text if is_url(text) else f"file:{text}"


def is_url(text: str) -> bool:
    """Return whether a text is a URL, and not the path of a file that looks like one."""
    return "://" in text and not paths.exists(text)


def best_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """Return the stream that FFmpeg considers best, but never cover art or a thumbnail; None if there is no other."""
    pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    videos = [stream for stream in container.streams.video if not stream.disposition & pictures]
    moving = [stream for stream in videos if stream.frames != 1] or videos  # 0 if unknown
    best = container.streams.best("video")
    return best if best in moving else max(moving, key=lambda stream: stream.width * stream.height, default=None)


def is_hdr(stream: av.VideoStream) -> bool:
    """Return whether a video is in HDR."""
    return stream.codec_context.color_trc in (PQ, HLG)


def decoded(stream: av.VideoStream, damage: Damage) -> Iterator[av.VideoFrame]:
    """Decode the frames in order, from where the container stands; failures are noted as damage."""
    yield from decoded_packets(_packets(stream, damage), damage)


def decoded_packets(packets: Iterable[av.Packet], damage: Damage) -> Iterator[av.VideoFrame]:
    """Decode packets in order; failures are noted as damage."""
    for packet in packets:
        damage.packets += packet.size > 0
        try:
            yield from packet.decode()
        except av.error.FFmpegError as error:
            damage.note(error.strerror, _position(packet))


def _packets(stream: av.VideoStream, damage: Damage) -> Iterator[av.Packet]:
    try:
        yield from stream.container.demux(stream)
    except av.error.FFmpegError as error:
        damage.note(error.strerror, "where the rest of the file cannot be read")


def promised(stream: av.VideoStream) -> int:
    """Return the number of packets that the file should have, 0 if only the packets themselves tell."""
    return len(stream.index_entries) if "mp4" in stream.container.format.name.split(",") else 0


def _position(packet: av.Packet) -> str:
    time = packet.dts if packet.pts is None else packet.pts
    seconds = "" if time is None else f"at {float(time * packet.time_base):.2f} s "
    return f"{seconds}(byte {packet.pos})"


def _reason(path: str | PathLike, error: av.error.FFmpegError) -> str:
    """Return why a file cannot be opened, with what FFmpeg logs when it tries again."""
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as logs, suppress(av.error.FFmpegError):
            av.open(address(path), **ANY_TITLE).close()
        said = [message.strip() for _, _, message in logs if message.strip()]
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips)
    return f"{error.strerror or error}{f' ({said[-1]})' if said else ''}"
