"""Training, evaluation and prediction on video files: what ``pip install "peft-aim[video]"`` adds to the core.

Import its modules (``evaluate``, ``predict``, ``pipeline``, ...) by name: each imports only the packages it needs.
"""
