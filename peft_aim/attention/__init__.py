"""Temporal attention: a block's frozen attention, run over the frames of one spatial position.

Each way to call an attention is a *kind*: :func:`find_kind` finds it, and users add theirs with :func:`along_time`.
"""

from peft_aim.attention.causal import Causal, find_causal
from peft_aim.attention.kinds import USERS_KINDS, Kind, OnGrid, along_time, in_words, off_the_fast_path
from peft_aim.attention.product import Weights, ending_in, find_output
from peft_aim.attention.recognize import find_kind, random_twin

__all__ = [
    "USERS_KINDS",
    "Causal",
    "Kind",
    "OnGrid",
    "Weights",
    "along_time",
    "ending_in",
    "find_causal",
    "find_kind",
    "find_output",
    "in_words",
    "off_the_fast_path",
    "random_twin",
]
