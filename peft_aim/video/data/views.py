"""The views of a video in evaluation: several clips, and several crops of their frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from peft_aim.video.data.decode import Video
from peft_aim.video.data.sampling import evaluation_frames
from peft_aim.video.data.transforms import ForEvaluation, Preprocessing


class Frames(Protocol):
    """Anything that frames can be read from, see :class:`~peft_aim.video.data.decode.Video`."""

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return frames, uint8 ``(len(indices), 3, H, W)``."""


@dataclass(frozen=True)
class Views:
    """How to make the views of a video.

    Attributes:
        frames: Number of frames T per clip.
        stride: Distance between the frames of a clip; None samples one from each of T equal segments.
        clips: Number of clips K per video.
        crops: Number of crops per frame.
        preprocessing: Preprocessing of the backbone's images.
    """

    frames: int
    stride: int | None
    clips: int
    crops: int
    preprocessing: Preprocessing

    @property
    def count(self) -> int:
        """Number of views, clips x crops."""
        return self.clips * self.crops

    @property
    def has_center(self) -> bool:
        """Whether the single view of a center crop from the middle of the video is among them."""
        return bool(self.clips % 2 and self.crops % 2)

    def single(self) -> Views:
        """Return the view of one clip and one crop."""
        return replace(self, clips=1, crops=1)

    def of(self, video: Video, part: range | None = None) -> Tensor:
        """Read the views of a video, or of a range of its frames.

        Shape:
            ``(clips * crops, T, 3, H, W)``
        """
        return self.read(video, range(len(video.seconds)) if part is None else part)

    def read(self, source: Frames, indices: range) -> Tensor:
        """Read the views from some of the frames of a source."""
        chosen = evaluation_frames(len(indices), self.frames, self.stride, self.clips)
        frames = source.read([indices[i] for clip in chosen for i in clip])  # (K*T, 3, H', W')
        transform = ForEvaluation(self.preprocessing, self.crops)
        return torch.cat([transform(clip) for clip in frames.split(self.frames)])
