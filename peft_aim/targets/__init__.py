"""Selects which modules of an inspected backbone get which adapters, after checking that the model can have them."""

from peft_aim.targets.checks import check_adapter_name, check_free, check_part_names
from peft_aim.targets.compiled import put_into
from peft_aim.targets.selection import adapted_blocks, as_regex, not_decayed, resolve_targets, whole_classes

__all__ = [
    "adapted_blocks",
    "as_regex",
    "check_adapter_name",
    "check_free",
    "check_part_names",
    "not_decayed",
    "put_into",
    "resolve_targets",
    "whole_classes",
]
