"""Registers AIM in PEFT's own tables, since PEFT has no entry points for plugins."""

from __future__ import annotations

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

NAME = "AIM"


def add_peft_type() -> PeftType:
    """Add the member ``PeftType.AIM`` to PEFT's closed enum, once.

    A plain string in PEFT's mappings would pass its lookups, but model status, transformers' integration and pickling
    read ``peft_type.value``, so it has to be a real member.

    Raises:
        ImportError: If PEFT or another package already has a method of this name.
    """
    if NAME in PeftType.__members__:
        if getattr(PeftType[NAME], "owner", None) == __name__:
            return PeftType[NAME]
        raise ImportError(
            f"PeftType.{NAME} already exists: this PEFT version or another package has its own method named {NAME}, "
            "so peft_aim cannot be imported. Use that method, or install a peft version without it."
        )
    member = str.__new__(PeftType, NAME)
    member._name_ = member._value_ = NAME
    member.owner = __name__
    type.__setattr__(PeftType, NAME, member)  # EnumMeta forbids plain assignment
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    return member


def register(config_cls: type, model_cls: type) -> None:
    """Register the method with PEFT; a second call, for example after ``importlib.reload``, changes nothing."""
    if PEFT_TYPE_TO_CONFIG_MAPPING.get(add_peft_type()) is not config_cls:
        register_peft_method(name=NAME.lower(), config_cls=config_cls, model_cls=model_cls, prefix="aim_")
