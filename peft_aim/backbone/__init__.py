"""What an image model is made of: its blocks and their parts, where tokens enter, and the head.

Found by structure, then checked by running; :func:`inspect_backbone` is the way in.
"""

from peft_aim.backbone.anatomy import Anatomy, PartNames
from peft_aim.backbone.inspection import Inspection, inspect_backbone, listed, within
from peft_aim.backbone.names import check_known, parse
from peft_aim.backbone.untrained import build_untrained

__all__ = [
    "Anatomy",
    "Inspection",
    "PartNames",
    "build_untrained",
    "check_known",
    "inspect_backbone",
    "listed",
    "parse",
    "within",
]
