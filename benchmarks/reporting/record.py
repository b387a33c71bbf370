"""Writes a benchmark's numbers with all that one needs to get them again."""

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
        command: How it was run.
        seed: Of its random numbers.
        folder: Where to write it instead.
        numbers: What came out.
    """
    facts = {
        "command": command,
        "commit": commit(),
        "seed": seed,
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}{_gpu()}",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**facts, **numbers}, indent=2) + "\n")
    return path


def commit() -> str:
    """Return which commit this is, and whether anything was changed since."""
    return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()


def _gpu() -> str:
    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
