"""Several processes raise alike: none is left waiting for the others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from peft_aim.video.processes import gather, once

SCRIPT = Path(__file__).with_name("two_ranks.py")


def on_two(what: str, folder: Path) -> list[str]:
    """Start two processes as srun and mpirun do, which don't stop one if the other ends; return what each prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = []
    for rank in ("0", "1"):
        environment = {
            **os.environ,
            **address,
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, str(SCRIPT), what, str(folder)]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        done = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), done
    return [printed.decode().strip() for printed, _ in done]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("scores_are_not_finite", "NotFinite: The class scores of 1 of 2 videos, {folder}/val/dark/1.mp4"),
        ("videos_cannot_be_read", "ValueError: None of the 6 training videos can be read. a.mp4 is on another disk."),
        ("the_main_process_fails", "FileNotFoundError: [Errno 2] No such file or directory: '{folder}/missing'"),
    ],
)
def test_what_is_wrong_on_one_process_is_raised_on_both(folder, what, message):
    first, second = on_two(what, folder)
    assert first == second and first.startswith(message.format(folder=folder))


def test_one_process_needs_no_others():
    assert once(lambda: 1 + 1) == 2 and gather(["b", "a", "b"]) == ["a", "b"]
    with pytest.raises(ZeroDivisionError):
        once(lambda: 1 / 0)
