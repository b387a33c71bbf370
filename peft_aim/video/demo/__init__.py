"""``peft-aim demo``: the whole workflow, from training to swapping adapters, on generated videos of digits.

Benchmarks and tests generate their clips with :mod:`peft_aim.video.demo.digits`, too.
"""

from peft_aim.video.demo.digits import RANGES, SIZE, Digits, draw, stills
from peft_aim.video.demo.run import demo, pretrain

__all__ = ["RANGES", "SIZE", "Digits", "demo", "draw", "pretrain", "stills"]
