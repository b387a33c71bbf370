"""Converts checkpoints of the official AIM code to adapters, after checking that the backbone matches.

:func:`from_official` is the entry point; :func:`with_place_for_head` adds a head slot to image towers without one.
"""

from peft_aim.convert.conversion import from_official
from peft_aim.convert.place_for_head import with_place_for_head

__all__ = ["from_official", "with_place_for_head"]
