"""The views of the windows of a long video, in one pass over its frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from peft_aim.video.data.decode import Video
from peft_aim.video.data.views import Views


def views_of_windows(video: Video, views: Views, windows: Sequence[range]) -> Iterator[Tensor]:
    """Yield the views of each window, reading every frame once and keeping only those that a later window needs.

    Args:
        video: The video.
        views: How to make the views of a window.
        windows: The windows as ranges of frames, in the order of their starts.

    Shape:
        ``(clips * crops, T, 3, H, W)`` each
    """
    wanted = [views.chosen(window) for window in windows]
    covering, held, k = views.transform.covering, {}, 0
    for i, frame in video.frames(sorted({i for chosen in wanted for i in chosen})):
        held[i] = covering(frame)
        while k < len(wanted) and max(wanted[k]) <= i:
            yield views.made(torch.stack([held[index] for index in wanted[k]]))
            k += 1
            needed = windows[k].start if k < len(windows) else i
            held = {index: kept for index, kept in held.items() if index >= needed}
