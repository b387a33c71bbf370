"""How long does reading a clip of a short mp4 take, compared to the former reader, which checked nothing?"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.containers import former
from benchmarks.containers.forms import H264, Encoded
from peft_aim.video.data import evaluation_frames, open_video

SIZE, COUNT, CLIPS = (240, 320), 64, 10
GROUPS = (12, 250)  # pictures per key frame
FRAMES = 8


def speed(rounds: int) -> list[dict[str, Any]]:
    """Return the ratio of processor times by length of groups of pictures, each video's least of all rounds."""
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)  # as in the workers of a data loader
    with tempfile.TemporaryDirectory() as folder:
        for group in GROUPS:
            paths = [_written(Path(folder) / f"{group}-{i}.mp4", group, seed=i) for i in range(CLIPS)]
            assert all(torch.equal(_read(path), _read_formerly(path)) for path in paths)
            least = {read: dict.fromkeys(paths, math.inf) for read in (_read, _read_formerly)}
            for _ in range(rounds):
                for read, seconds in least.items():
                    for path in paths:
                        seconds[path] = min(seconds[path], _seconds(read, path))
            now, before = (sum(seconds.values()) / len(paths) for seconds in least.values())
            ratio, milliseconds = now / before, 1000 * now
            rows.append({"group": group, "milliseconds": round(milliseconds, 2), "ratio": round(ratio, 3)})
    torch.set_num_threads(threads)
    return rows


def _written(path: Path, group: int, seed: int) -> Path:
    """Write a video of smooth noise that moves, since even pictures would be decoded in no time."""
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8 + COUNT, 3), dtype=np.uint8)
    wide = noise.repeat(8, axis=0).repeat(8, axis=1)
    images = np.stack([wide[:, 4 * i : 4 * i + SIZE[1]] for i in range(COUNT)])
    Encoded(options={**H264, "g": str(group), "crf": "23"})(images, path)
    return path


def _read(path: Path) -> Tensor:
    with open_video(path) as video:
        (chosen,) = evaluation_frames(len(video.seconds), FRAMES, stride=None)
        return video.read(chosen)


def _read_formerly(path: Path) -> Tensor:
    with former.opened(path) as video:
        (chosen,) = evaluation_frames(len(video.seconds), FRAMES, stride=None)
        return video.read(chosen)


def _seconds(read: Callable[[Path], Tensor], path: Path) -> float:
    """Return the processor time of a clip in seconds."""
    began = time.process_time()
    read(path)
    return time.process_time() - began
