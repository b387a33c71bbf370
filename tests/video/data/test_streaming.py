"""The views of a long video's windows, in one pass."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor

from peft_aim.video.data import Preprocessing, Video, Views, views_of_windows, windows

GREY = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)


class Endless(Video):
    """A video whose frame i has the value i % 251; it counts the frames that are read, and those still in memory."""

    def __init__(self, count: int, rate: float = 10) -> None:
        super().__init__("endless")
        self.seconds, self.size = [i / rate for i in range(count)], (8, 8)
        self.decoded: list[int] = []
        self.alive, self.most = 0, 0

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        for i in indices:
            frame = torch.full((3, 8, 8), i % 251, dtype=torch.uint8)
            self.decoded.append(i)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(frame, self.forget)
            yield i, frame

    def forget(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize("views", [Views(4, None, 1, 1, GREY), Views(4, 3, 2, 3, GREY), Views(8, 7, 1, 1, GREY)])
def test_windows_have_the_views_that_each_has_alone(views):
    video = Endless(200)
    parts = windows(video.seconds, 2.0)
    found = list(views_of_windows(video, views, parts))
    assert len(found) == len(parts) == 19
    assert video.decoded == sorted(set(video.decoded))  # each frame once
    for part, clips in zip(parts, found, strict=True):
        assert torch.equal(clips, views.made(Endless(200).read(views.chosen(part), views.transform.covering)))


def test_memory_is_bounded_however_long_a_video_is():
    """Half an hour at 30 frames per second: never more than the frames of two windows are held."""
    video, views = Endless(1800 * 30, rate=30), Views(8, None, 1, 1, GREY)
    parts = windows(video.seconds, 4.0)
    assert sum(1 for _ in views_of_windows(video, views, parts)) == len(parts) > 800
    assert video.most <= 2 * views.frames + 2
