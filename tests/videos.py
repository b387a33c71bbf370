"""Test videos: frame i is uniformly gray, with the value 20 i."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch


def write(path: Path, count: int = 12, size: tuple[int, int] = (32, 48), key_every: int = 5, rate: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "/".join(path.parts[-3:])  # no two are the same by content
        stream = container.add_stream("libx264", rate=rate, options={"crf": "5", "g": str(key_every), "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv444p"
        for i in range(count):
            image = np.full((*size, 3), 20 * i % 256, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_classes(root: Path, val: int) -> Path:
    """Write three training videos, and some for validation, of each of two classes; return their folder."""
    for split, count in (("train", 3), ("val", val)):
        for name in ("dark", "light"):
            for i in range(count):
                write(root / split / name / f"{i}.mp4", count=4 + i)
    return root


def write_variable(path: Path, gaps: list[int]) -> Path:
    """Write a video with frames of these durations, in tenths of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "5", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 10)
        time = 0
        for i, gap in enumerate(gaps):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 20 * i, dtype=np.uint8), format="rgb24")
            frame.pts, time = time, time + gap
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_broken(folder: Path) -> dict[str, Path]:
    """Write broken and short videos as users have them, and return their paths by what is wrong with them."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = write(folder / "whole.mp4", count=60, size=(64, 64)).read_bytes()
    (folder / "whole.mp4").unlink()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])  # the index was at the end
    (folder / "note.mp4").write_text("not a video\n" * 50)
    (folder / "empty.mp4").write_bytes(b"")
    write(folder / "one.mp4", count=1)
    return {name: folder / f"{name}.mp4" for name in ("truncated", "note", "empty", "one")}


def shown(frames: torch.Tensor) -> list[int]:
    """Return the index of each frame, from its gray value."""
    return (frames.float().mean((1, 2, 3)) / 20).round().int().tolist()
