"""Training on videos with transformers' Trainer, on all devices that accelerate supports; checkpoints and the report.

:func:`train` runs all of it.
"""

from peft_aim.video.training.report import Report
from peft_aim.video.training.run import measure_speed, train

__all__ = ["Report", "measure_speed", "train"]
