"""Inspects a backbone: its blocks and their parts, where tokens enter, the final norms and the head.

Everything is found by structure and checked by running it; :func:`inspect_backbone` is the entry point.
"""

from peft_aim.backbone.anatomy import Anatomy, PartNames
from peft_aim.backbone.candidates import listed, outermost
from peft_aim.backbone.causal import note_causal
from peft_aim.backbone.inspection import Inspection, inspect_backbone
from peft_aim.backbone.names import check_known, parse
from peft_aim.backbone.quantized import check_gradients_pass
from peft_aim.backbone.resemblance import within
from peft_aim.backbone.untrained import build_untrained
from peft_aim.backbone.whole import check_own_code_and_weights

__all__ = [
    "Anatomy",
    "Inspection",
    "PartNames",
    "build_untrained",
    "check_gradients_pass",
    "check_known",
    "check_own_code_and_weights",
    "inspect_backbone",
    "listed",
    "note_causal",
    "outermost",
    "parse",
    "within",
]
