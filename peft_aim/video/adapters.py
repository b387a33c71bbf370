"""Loads saved adapters onto the backbone that they name: once, however many there are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peft import PeftModel
from peft.utils import CONFIG_NAME

from peft_aim.config import AIMConfig
from peft_aim.video.backbones import Source, load_backbone
from peft_aim.video.description import Description


@dataclass(frozen=True)
class Loaded:
    """Adapters on one backbone.

    Attributes:
        model: The model, in evaluation mode; the first adapter is active.
        names: Folder or Hub id of each adapter; its name in the model is that of its position, "adapter0".
        descriptions: What each says of itself.
    """

    model: PeftModel
    names: list[str]
    descriptions: list[Description]

    def activate(self, position: int) -> Description:
        """Switch to an adapter, and return what it says of itself."""
        self.model.set_adapter(_name(position))
        return self.descriptions[position]


def load_adapters(names: Sequence[str], source: Source | None = None) -> Loaded:
    """Load adapters that share a backbone.

    Args:
        names: Their folders or Hub ids.
        source: Where to load the backbone from, if not from where they say.

    Raises:
        ValueError: If one is no adapter, doesn't say how its clips are made, names another backbone than the others,
            or was trained on other frozen weights than those that are loaded.
    """
    configs = [_config(name) for name in names]
    descriptions = [Description.read(config, name) for config, name in zip(configs, names, strict=True)]
    sources = [description.source for description in descriptions]
    for name, other in zip(names, sources, strict=True):
        if (other.model, other.image_size) != (sources[0].model, sources[0].image_size):
            raise ValueError(
                f"{name} was trained on {other.model}, but {names[0]} on {sources[0].model}. Predict with adapters of "
                "one backbone at a time."
            )
    if source is None and sources[0].random_weights:
        raise ValueError(f"{names[0]} was trained on a backbone of random weights, which nobody has any more.")
    wanted = sources[0]
    if source is not None:  # of it, what is not said is as the adapter has it
        size, kind = source.image_size or wanted.image_size, source.model_class or wanted.model_class
        wanted = replace(source, image_size=size, model_class=kind)
    backbone, _ = load_backbone(wanted)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The adapter .* was trained on a backbone with the fingerprint")
        try:
            model = PeftModel.from_pretrained(backbone, names[0], adapter_name=_name(0))
            for position, name in enumerate(names[1:], 1):
                model.load_adapter(name, _name(position))
        except (UserWarning, ValueError) as trouble:
            raise ValueError(
                f"{trouble} The backbone here is {wanted.model}, {names[0]} was trained on {sources[0].model}."
            ) from None
    return Loaded(model.eval(), list(names), descriptions)


def _config(name: str) -> AIMConfig:
    path = Path(name)
    if path.exists() and not (path / CONFIG_NAME).is_file():
        raise ValueError(f"{name} is no AIM adapter: there is no {CONFIG_NAME} in it. The adapter is given first.")
    if not path.exists() and len(path.parts) != 2:  # a Hub id has an owner and a name
        raise ValueError(f"There is no folder {name}, and it is no Hub id, OWNER/NAME, of an AIM adapter.")
    try:
        return AIMConfig.from_pretrained(name)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name} is no AIM adapter, neither as a folder nor on the Hub: {error}") from error


def _name(position: int) -> str:
    return f"adapter{position}"
