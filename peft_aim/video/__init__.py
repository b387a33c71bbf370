"""Training, evaluation and prediction on video files: what ``pip install "peft-aim[video]"`` adds to the core.

Import its modules (``evaluate``, ``predict``, ``pipeline``, ...) by name: each imports only the packages it needs.
"""

import importlib
import typing

FUNCTIONS: dict[str, str] = {  # by name, the modules of those that are available here as well
    "embed": "embedding",
    "explain": "attribution",
    "export": "exporting",
}


def __getattr__(name: str) -> typing.Any:
    """Import a function when it is first asked for."""
    if name not in FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{FUNCTIONS[name]}"), name)
