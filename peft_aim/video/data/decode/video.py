"""An open video, whatever it is stored in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from peft_aim.video.data.decode.damage import Damage

Result = TypeVar("Result")


class BrokenVideo(ValueError):  # noqa: N818 (the video is at fault)
    """Raised for a file that is not a video, or has no frame that can be decoded."""


class Video(ABC):
    """An open video, as plain decoding from the start to the end shows it.

    Attributes:
        path: The file or folder.
        seconds: Presentation time of each frame, ascending from 0; the video has ``len(seconds)`` frames.
        size: Height and width of the frames in pixels, upright.
        hdr: Whether it is in HDR (PQ or HLG), which is read without tone mapping.
        damage: The frames that could not be decoded so far.
    """

    seconds: list[float]
    size: tuple[int, int]
    hdr = False

    def __init__(self, path: str | PathLike) -> None:
        self.path, self.damage = path, Damage(path)

    @abstractmethod
    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield frames one by one, as they are decoded, with their indices.

        Args:
            indices: Frame indices, ascending and distinct.

        Shape:
            uint8 RGB ``(3, H, W)`` each

        Raises:
            BrokenVideo: If none of them can be decoded.
        """

    def read(self, indices: Sequence[int], each: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Decode some frames.

        Args:
            indices: Frame indices, counted from 0, in any order and with repetitions.
            each: Function applied to each frame as soon as it is decoded, so that only its results, such as resized
                frames, are in memory at the same time.

        Returns:
            The frames, uint8 RGB ``(len(indices), 3, H, W)``. If some turn out to be others than the container tells,
            ``seconds`` is corrected; indices beyond the end are the last frame. See :meth:`consistently`.

        Raises:
            BrokenVideo: If none of the frames can be decoded.
        """
        found = {i: each(frame) if each else frame for i, frame in self.frames(sorted(set(indices)))}
        return _stacked([found[i] for i in indices])

    def consistently(self, use: Callable[[Video], Result]) -> Result:
        """Return what a function makes of the video; it is called again if it has led to another count of frames.

        Containers may tell other frames than can be decoded, which reading finds out.

        Args:
            use: Function that chooses frames by ``seconds``, and reads them.
        """
        seconds = self.seconds
        result = use(self)
        return result if self.seconds is seconds else use(self)


def _stacked(frames: list[Tensor]) -> Tensor:
    """Stack frames in their own memory format: decoded ones have the channels last, and converting them is slow."""
    if frames[0].is_contiguous():
        return torch.stack(frames)
    return torch.from_numpy(np.stack([frame.movedim(0, -1).numpy() for frame in frames])).movedim(-1, 1)
