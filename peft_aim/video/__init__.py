"""Training, evaluation and prediction on video files: what ``pip install "peft-aim[video]"`` adds to the core.

Import its modules (``evaluate``, ``predict``, ``pipeline``, ...) by name: each imports only the packages it needs.
"""

import importlib


def __getattr__(name: str) -> object:
    """Return a function, and import its module only now."""
    modules = {"explain": "peft_aim.video.attribution"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(modules[name]), name)
