"""Temporal attention: how a frozen attention is run along time, one kind for each way to call it.

:func:`along_time` is for users; the other rooms find a kind with :func:`find_kind` and call it.
"""

from peft_aim.attention.kinds import USERS_KINDS, Kind, OnGrid, along_time, in_words, off_the_fast_path
from peft_aim.attention.product import ending_in, find_output
from peft_aim.attention.recognize import find_kind, random_twin

__all__ = [
    "USERS_KINDS",
    "Kind",
    "OnGrid",
    "along_time",
    "ending_in",
    "find_kind",
    "find_output",
    "in_words",
    "off_the_fast_path",
    "random_twin",
]
