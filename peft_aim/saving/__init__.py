"""Saves and loads adapters: checks saved weights, fingerprints frozen ones, and hot-swaps adapters.

Every adapter is saved with the fingerprint of the frozen weights that it was trained on.
"""

from peft_aim.saving.fingerprint import fingerprint_of, same_weights
from peft_aim.saving.hotswap import hotswap_adapter
from peft_aim.saving.selection import select_weights
from peft_aim.saving.weights import (
    adapter_weights,
    check_shapes,
    frozen_weights,
    in_precision,
    plain,
    saved_shapes,
    shapes_of,
    unwrapped,
)

__all__ = [
    "adapter_weights",
    "check_shapes",
    "fingerprint_of",
    "frozen_weights",
    "hotswap_adapter",
    "in_precision",
    "plain",
    "same_weights",
    "saved_shapes",
    "select_weights",
    "shapes_of",
    "unwrapped",
]
