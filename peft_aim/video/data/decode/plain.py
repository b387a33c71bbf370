"""Plain decoding, the definition of what a video shows: all frames, from the start to the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os import PathLike

import av
from torch import Tensor

from peft_aim.video.data.decode.container import decoded, is_hdr, opened, promised
from peft_aim.video.data.decode.damage import Damage
from peft_aim.video.data.decode.picture import Pictures
from peft_aim.video.data.decode.times import ascending_seconds
from peft_aim.video.data.decode.video import BrokenVideo, Video

KEPT = 32 * 2**20  # bytes of decoded frames


class PlainVideo(Video):
    """A video that is decoded once to count its frames, and again to read them, unless they are few and small.

    Args:
        path: The file.
    """

    def __init__(self, path: str | PathLike) -> None:
        super().__init__(path)
        self._kept: list[av.VideoFrame] | None = []
        times, size = [], 0
        with opened(path) as stream:
            for frame in decoded(stream, self.damage):
                if not times:
                    self._pictures = Pictures(frame)
                times.append(frame.pts)
                size += sum(plane.buffer_size for plane in frame.planes)
                if size > KEPT:
                    self._kept = None
                elif self._kept is not None:
                    self._kept.append(frame)
            if not times:
                none = f"None of the frames of {path} can be decoded{self.damage.why}."
                raise BrokenVideo(none if self.damage.errors else f"{path} has no video frames.")
            self.seconds = ascending_seconds(times, stream)
            self.hdr = is_hdr(stream)
            missing = promised(stream) - self.damage.packets
            if missing > 0:
                self.damage.note("the file ends", f"at {self.seconds[-1]:.2f} s", missing)
        self.damage.lost, self.damage.wanted = self.damage.errors, len(times) + self.damage.errors
        self.size = self._pictures.size

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield frames one by one, see :meth:`Video.frames`."""
        if self._kept is not None:
            yield from ((i, self._pictures.of(self._kept[i])) for i in indices)
        else:
            yield from self._decoded_again(indices)

    def _decoded_again(self, indices: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        wanted = iter(indices)
        i = next(wanted, None)
        with opened(self.path) as stream:  # anew, since seeking may lose what came with the first packets
            for number, frame in enumerate(decoded(stream, Damage(self.path))):
                if number == i:
                    yield i, self._pictures.of(frame)
                    i = next(wanted, None)
                if i is None:
                    return
        raise BrokenVideo(f"{self.path} has changed while it was read: it has no frame {i} any more.")
