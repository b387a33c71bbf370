"""A folder of images as a video, as Something-Something v1 and Jester have them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

import av
from torch import Tensor

from peft_aim.video.data.decode.picture import Pictures
from peft_aim.video.data.decode.video import BrokenVideo, Video
from peft_aim.video.data.listing import images_in


class FrameFolder(Video):
    """A folder whose images are the frames of a video, in the order of the numbers in their names.

    Args:
        path: The folder.
        fps: Frames per second.

    Raises:
        BrokenVideo: If it has no images, or the first cannot be read.
    """

    def __init__(self, path: str | PathLike, fps: float) -> None:
        super().__init__(path)
        self._images = sorted(images_in(Path(path)), key=_by_number)
        if not self._images:
            raise BrokenVideo(f"{path} is a folder without images.")
        self.seconds = [i / fps for i in range(len(self._images))]
        first = next((frame for frame in map(self._read, self._images) if frame is not None), None)
        if first is None:
            raise BrokenVideo(f"None of the {len(self._images)} images in {path} can be read{self.damage.why}.")
        self._pictures = Pictures(first)
        self.size = self._pictures.size

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield frames one by one, see :meth:`Video.frames`."""
        for i in indices:
            frame = self._read(self._images[i])
            self.damage.wanted += 1
            self.damage.lost += frame is None
            if frame is None:  # the one before it or, at the start, after it
                near = map(self._read, (*self._images[i::-1], *self._images[i:]))
                frame = next(frame for frame in near if frame is not None)
            yield i, self._pictures.of(frame)

    def _read(self, path: Path) -> av.VideoFrame | None:
        try:
            with path.open("rb") as file, av.open(file) as image:
                return next(image.decode(video=0))
        except (OSError, StopIteration, IndexError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it has no picture"
            self.damage.note(reason, f"in {path.name}")
            return None


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sort "2.jpg" before "10.jpg".

    Example:
        >>> sorted([Path("10.jpg"), Path("2.jpg")], key=_by_number)[0].name
        '2.jpg'
    """
    return [(int(number or 0), text) for text, number in re.findall(r"(\D*)(\d*)", path.stem)]
