"""From videos to an adapter that others can use: what ``pip install peft-aim[video]`` adds to the core.

- Videos: ``listing`` and ``data`` find them, ``decode`` (with ``pyav``) reads frames, ``sampling`` says which,
  ``transforms`` prepares them, ``clips`` makes datasets.
- Training: ``recipe`` says how, ``backbones`` loads the image model, ``train`` does it with ``trainer``,
  ``checkpoints`` and ``processes``, ``report`` says what came out.
- Use: ``describe`` is what an adapter says of itself, ``adapters`` loads it, ``evaluate`` (with ``metrics``) and
  ``predict`` run it, ``picture`` draws, ``pipeline`` hands it to transformers.
- ``demo`` (with ``digits`` and ``swap``) shows it all on videos that it draws itself.
"""
