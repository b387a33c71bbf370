"""How much memory does a clip of 4K video take, beyond that of FFmpeg's decoder alone?

``python -m benchmarks.containers.memory PATH HOW`` prints the most memory of a process of its own, in MB.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from benchmarks.containers.forms import H264, Encoded
from peft_aim.video.data import EvaluationClips, ForTraining, Preprocessing, Sample, TrainingClips, Views
from peft_aim.video.recipe import Recipe

HEIGHT, WIDTH = 2160, 3840
FRAMES, SIZE = 32, 224
SUFFIXES = {".mp4": "seeking", ".ts": "plain decoding"}


def memory(count: int = 40) -> list[dict[str, Any]]:
    """Return the memory of clips of 32 frames at 224 px, in training and evaluation, beyond that of the decoder."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix, read_by in SUFFIXES.items():
            path = Path(folder) / f"a{suffix}"
            noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
            image = noise.repeat(8, axis=0).repeat(8, axis=1)
            Encoded(options={**H264, "crf": "30"})(np.broadcast_to(image, (count, *image.shape)), path)
            most = {how: _most(path, how) for how in WAYS}
            beyond = {how: round(most[how] - most["decoder"]) for how in ("training", "evaluation")}
            rows.append({"read by": read_by, "decoder": round(most["decoder"]), **beyond})
    return rows


def _most(path: Path, how: str) -> float:
    command = [sys.executable, "-m", "benchmarks.containers.memory", str(path), how]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def decode_only(path: Path) -> None:
    """Decode all frames, and keep none."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for _ in container.decode(stream):
            pass


def training(path: Path) -> None:
    """Load a training clip."""
    recipe = Recipe(frames=FRAMES)
    clips = TrainingClips([Sample(path, 0)], recipe, ForTraining(_preprocessing(), recipe, ["a", "b"]))
    item = clips[0]
    assert item["clips"].shape == (FRAMES, 3, SIZE, SIZE) and not item["skipped"]


def evaluation(path: Path) -> None:
    """Load the single view of a video."""
    item = EvaluationClips([Sample(path, 0)], Views(FRAMES, None, 1, 1, _preprocessing()), min_frames=1, fps=12)[0]
    assert item["clips"].shape == (1, FRAMES, 3, SIZE, SIZE) and not item["skipped"]


def _preprocessing() -> Preprocessing:
    return Preprocessing((SIZE, SIZE), (0.5,) * 3, (0.5,) * 3)


WAYS = {"decoder": decode_only, "training": training, "evaluation": evaluation}

if __name__ == "__main__":
    torch.set_num_threads(1)
    WAYS[sys.argv[2]](Path(sys.argv[1]))
    (most,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(most.split()[1]) / 1024)  # that of getrusage includes the parent's
