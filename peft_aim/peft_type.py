"""Makes ``AIM`` known to PEFT, which offers plugins no other door than its own tables."""

from __future__ import annotations

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

NAME = "AIM"


def add_peft_type() -> PeftType:
    """Add the member ``PeftType.AIM`` to PEFT's closed enum, once.

    A plain string in PEFT's mappings would pass its look-ups, but model status, transformers' integration and
    pickling read ``peft_type.value``, so it has to be a member like any other.

    Raises:
        ImportError: If PEFT, or another package, already owns a method of this name.
    """
    if NAME in PeftType.__members__:
        if getattr(PeftType[NAME], "owner", None) == __name__:
            return PeftType[NAME]
        raise ImportError(
            f"PeftType.{NAME} already exists: this PEFT, or another package, brings its own method called {NAME}. "
            "peft_aim cannot be loaded beside it. Use that one, or install a peft without it."
        )
    member = str.__new__(PeftType, NAME)
    member._name_ = member._value_ = NAME
    member.owner = __name__
    type.__setattr__(PeftType, NAME, member)  # EnumMeta forbids the plain assignment
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    return member


def register(config_cls: type, model_cls: type) -> None:
    """Enter the method into PEFT's tables; a second call, after ``importlib.reload`` say, changes nothing."""
    if PEFT_TYPE_TO_CONFIG_MAPPING.get(add_peft_type()) is not config_cls:
        register_peft_method(name=NAME.lower(), config_cls=config_cls, model_cls=model_cls, prefix="aim_")
