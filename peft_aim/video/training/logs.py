"""Logs for other programs, such as TensorBoard, by transformers' own callbacks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from transformers import Trainer, integrations
from transformers.integrations import INTEGRATION_TO_CALLBACK, TensorBoardCallback

TENSORBOARD = "tensorboard"  # folder in the output


def check_log(log: Sequence[str]) -> None:
    """Check that programs to log to are known to transformers and installed.

    Raises:
        ValueError: If one of them is not.
    """
    for name in log:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"log={name!r} is not supported by transformers. Give one of {', '.join(INTEGRATION_TO_CALLBACK)}."
            )
        if name not in integrations.get_available_reporting_integrations():
            raise ValueError(
                f"log={name!r} is not installed. Install it with: pip install {name}. transformers also supports "
                f"{', '.join(other for other in INTEGRATION_TO_CALLBACK if other != name)}."
            )


def keep_logs(trainer: Trainer, output: Path) -> None:
    """Let TensorBoard's files go to the output folder, since the checkpoints beside them are deleted at the end."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and "TENSORBOARD_LOGGING_DIR" not in os.environ:
            callback.logging_dir = str(output / TENSORBOARD)
