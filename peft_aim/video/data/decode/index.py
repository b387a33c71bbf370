"""Which frames a video has, by its packets alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import av

from peft_aim.video.data.decode.container import promised

# The containers that store a presentation time for each picture, and the codecs one packet of which is one picture.
# (In VP8, some packets are never shown; in MPEG-4 part 2, one packet may hold two pictures or none.)
CONTAINERS = {"mp4", "matroska"}
CODECS = {"h264", "hevc", "av1", "vp9"}


@dataclass(frozen=True)
class Index:
    """The frames of a video.

    Attributes:
        times: Presentation time of each frame in the time base of the stream, ascending.
        keys: Those of the key frames, ascending; the first is not after the first frame.
    """

    times: list[int]
    keys: list[int]

    @classmethod
    def of(cls, stream: av.VideoStream) -> Index | None:
        """Read the packets of a stream; None if they don't tell for certain what plain decoding shows.

        Packets that an edit list hides are decoded, but not shown. Lost parts of a file are zeros.
        """
        formats, codec = set(stream.container.format.name.split(",")), stream.codec_context.codec
        if not formats & CONTAINERS or not (codec.canonical_name in CODECS or codec.intra_only):
            return None
        times, keys, packets = [], [], 0
        try:
            for packet in stream.container.demux(stream):
                if not packet.size:
                    continue
                packets += 1
                if packet.pts is None or packet.is_corrupt or not any(memoryview(packet)[:8]):
                    return None
                if not packet.is_discard:
                    times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
        except av.error.FFmpegError:
            return None
        times, keys = sorted(times), sorted(keys)
        in_order = all(before < now for before, now in pairwise(times))
        is_clear = packets >= promised(stream) and times and keys and keys[0] <= times[0] and in_order
        return cls(times, keys) if is_clear else None
