"""``peft-aim demo``: the main job from end to end, on videos of handwritten digits that it draws itself.

Benchmarks and tests draw their clips with :mod:`peft_aim.video.demo.digits`, too.
"""

from peft_aim.video.demo.digits import RANGES, SIZE, Digits, draw, stills
from peft_aim.video.demo.run import demo, pretrain

__all__ = ["RANGES", "SIZE", "Digits", "demo", "draw", "pretrain", "stills"]
