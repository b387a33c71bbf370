"""From videos to an adapter that others can use: what ``pip install "peft-aim[video]"`` adds to the core.

Import its modules (``evaluate``, ``predict``, ``pipeline`` ...) by name: each loads only the packages that it needs.
"""
