"""Saves and loads adapters: checks saved weights, fingerprints frozen ones, and hot-swaps adapters.

Every adapter is saved with the fingerprint of the frozen weights that it was trained on.
"""

from peft_aim.saving.frozen import compare_backbone, fingerprint_to_save
from peft_aim.saving.hotswap import hotswap_adapter
from peft_aim.saving.peft_model import extend_peft_model
from peft_aim.saving.selection import select_weights
from peft_aim.saving.weights import (
    adapter_weights,
    check_file,
    check_shapes,
    in_precision,
    own_shapes,
    plain,
    shapes_of,
    unwrapped,
)

__all__ = [
    "adapter_weights",
    "check_file",
    "check_shapes",
    "compare_backbone",
    "extend_peft_model",
    "fingerprint_to_save",
    "hotswap_adapter",
    "in_precision",
    "own_shapes",
    "plain",
    "select_weights",
    "shapes_of",
    "unwrapped",
]
