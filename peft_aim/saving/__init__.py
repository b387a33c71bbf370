"""What is saved of an adapter, what a file must hold to be loaded, and swapping one for another in place.

The fingerprint of the frozen weights goes with every saved adapter.
"""

from peft_aim.saving.fingerprint import fingerprint_of, same_weights
from peft_aim.saving.hotswap import hotswap_adapter
from peft_aim.saving.weights import (
    adapter_weights,
    check_shapes,
    frozen_weights,
    in_precision,
    saved_shapes,
    shapes_of,
)

__all__ = [
    "adapter_weights",
    "check_shapes",
    "fingerprint_of",
    "frozen_weights",
    "hotswap_adapter",
    "in_precision",
    "same_weights",
    "saved_shapes",
    "shapes_of",
]
