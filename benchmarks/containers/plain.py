"""The reference: plain decoding from the start to the end, by nothing but PyAV."""

from __future__ import annotations

from pathlib import Path

import av
import torch
from torch import Tensor


def plainly_decoded(path: Path) -> tuple[Tensor, list[int | None]]:
    """Return all frames as stored, uint8 ``(n, 3, H, W)``, and their times in the time base of the stream."""
    images, times = [], []
    with av.open(f"file:{path}") as container:
        for packet in container.demux(video=0):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            images += [torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1) for frame in frames]
            times += [frame.pts for frame in frames]
    return torch.stack(images), times
