"""All options of the method, checked when a config is created."""

from peft_aim.config.checks import PROBLEM_TYPES, TEMPORAL
from peft_aim.config.hub import NotDownloaded, SavedAdapter, broken
from peft_aim.config.options import AIMConfig

__all__ = ["PROBLEM_TYPES", "TEMPORAL", "AIMConfig", "NotDownloaded", "SavedAdapter", "broken"]
