"""Checkpoints of the official AIM code become adapters, after a check that the backbone is theirs.

:func:`from_official` does it; :func:`with_place_for_head` prepares image towers that end in a bare matrix.
"""

from peft_aim.convert.conversion import from_official
from peft_aim.convert.place_for_head import with_place_for_head

__all__ = ["from_official", "with_place_for_head"]
