"""Training, evaluation and prediction on video files: what ``pip install "peft-aim[video]"`` adds to the core.

Import its modules (``evaluate``, ``predict``, ``pipeline``, ...) by name: each imports only the packages it needs.
"""

import importlib

FUNCTIONS: dict[str, str] = {"export": "peft_aim.video.exporting"}  # where each is, imported when it is needed


def __getattr__(name: str) -> object:
    if name not in FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(FUNCTIONS[name]), name)
