"""Records of the benchmarks: their numbers, with everything needed to reproduce them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent.parent / "results"
PACKAGES = ("torch", "peft", "transformers", "timm", "torchvision", "av")


def record(name: str, command: str, seed: int, folder: Path = RESULTS, **numbers: Any) -> Path:
    """Write ``results/<name>.json``.

    Args:
        name: Name of the benchmark.
        command: Command that ran it.
        seed: Seed of its random numbers.
        folder: Folder to write to.
        numbers: Results.
    """
    facts = {
        "command": command,
        "commit": commit(),
        "seed": seed,
        "device": device(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**facts, **numbers}, indent=2) + "\n")
    return path


def commit() -> str:
    """Return the current commit, marked ``-dirty`` if the working tree has changes."""
    return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()


def device() -> str:
    """Return the CPU and the GPU, if any."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} CPU cores, {platform.machine()}{gpu}"
