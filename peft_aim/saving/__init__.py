"""Saves and loads adapters: checks saved weights, fingerprints frozen ones, and hot-swaps adapters.

Every adapter is saved with the fingerprint of the frozen weights that it was trained on.
"""

from peft_aim.saving.fingerprint import same_weights
from peft_aim.saving.frozen import NO_FINGERPRINT, backbone_fingerprint
from peft_aim.saving.hotswap import hotswap_adapter
from peft_aim.saving.peft_model import extend_peft_model
from peft_aim.saving.weights import (
    adapter_weights,
    check_complete,
    check_file,
    check_not_quantized,
    check_shapes,
    in_precision,
    own_shapes,
    saved_shapes,
    shapes_of,
)

__all__ = [
    "NO_FINGERPRINT",
    "adapter_weights",
    "backbone_fingerprint",
    "check_complete",
    "check_file",
    "check_not_quantized",
    "check_shapes",
    "extend_peft_model",
    "hotswap_adapter",
    "in_precision",
    "own_shapes",
    "same_weights",
    "saved_shapes",
    "shapes_of",
]
