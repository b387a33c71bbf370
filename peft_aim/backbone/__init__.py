"""What an image model is made of: its blocks and their parts, where tokens enter, and the head.

Found by structure, then checked by running; :func:`survey` is the way in.
"""

from peft_aim.backbone.anatomy import Anatomy, PartNames
from peft_aim.backbone.inspection import Survey, listed, survey, within
from peft_aim.backbone.names import check_known, parse
from peft_aim.backbone.untrained import build_untrained

__all__ = ["Anatomy", "PartNames", "Survey", "build_untrained", "check_known", "listed", "parse", "survey", "within"]
