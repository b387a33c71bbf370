"""The views of a video in evaluation: several clips, and several crops of their frames."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from peft_aim.video.data.decode import Video
from peft_aim.video.data.sampling import evaluation_frames
from peft_aim.video.data.transforms import ForEvaluation, Preprocessing


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

    def of(self, video: Video) -> Tensor:
        """Read the views of a video.

        Shape:
            ``(clips * crops, T, 3, H, W)``
        """
        return self.made(video.read(self.chosen(range(len(video.seconds))), self.transform.covering))

    def chosen(self, part: range) -> list[int]:
        """Return the frames of all clips, in order, K * T indices, for a range of the frames of a video."""
        clips = evaluation_frames(len(part), self.frames, self.stride, self.clips)
        return [part[i] for clip in clips for i in clip]

    def made(self, frames: Tensor) -> Tensor:
        """Return the views made of the chosen frames, ``(K * T, 3, H', W') -> (clips * crops, T, 3, H, W)``.

        Args:
            frames: The frames, resized by ``transform.covering``.
        """
        transform = self.transform
        return torch.cat([transform.cropped(clip) for clip in frames.split(self.frames)])

    @property
    def transform(self) -> ForEvaluation:
        """Preprocessing and crops of the frames."""
        return ForEvaluation(self.preprocessing, self.crops)
