"""Load one or several saved adapters onto a single copy of their backbone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import CONFIG_NAME

from peft_aim.config import AIMConfig
from peft_aim.saving import adapter_weights
from peft_aim.video.backbones import Source, load_backbone
from peft_aim.video.description import Description
from peft_aim.video.finite import not_finite


@dataclass(frozen=True)
class Loaded:
    """Adapters loaded onto one backbone.

    Attributes:
        model: The model, in evaluation mode; the first adapter is active.
        names: Folder or Hub id of each adapter. Its name in the model follows from its position, "adapter0".
        descriptions: Description of each adapter.
    """

    model: PeftModel
    names: list[str]
    descriptions: list[Description]

    def activate(self, position: int) -> Description:
        """Activate the adapter at a position and return its description."""
        self.model.set_adapter(_name(position))
        return self.descriptions[position]

    def to_gpu(self) -> torch.device:
        """Move the model to the GPU, if there is one, and return its device."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(device)
        return device


def load_adapters(names: str | Sequence[str], source: Source | None = None) -> Loaded:
    """Load adapters that share a backbone.

    Args:
        names: Folders or Hub ids of the adapters, or of one.
        source: Where to load the backbone from; None uses the source recorded in the first adapter.

    Raises:
        ValueError: If one of them is not an adapter, has no description of how to make its clips, was trained on
            a different backbone from the others, or on frozen weights other than those loaded, or has weights that are
            NaN or infinite.
    """
    names = [names] if isinstance(names, str) else names
    configs = [_config(name) for name in names]
    descriptions = [Description.read(config, name) for config, name in zip(configs, names, strict=True)]
    sources = [description.source for description in descriptions]
    for name, other in zip(names, sources, strict=True):
        if (other.model, other.image_size) != (sources[0].model, sources[0].image_size):
            raise ValueError(
                f"{name} was trained on the backbone {_named(other)}, but {names[0]} on {_named(sources[0])}. Load "
                "adapters of one backbone at a time."
            )
    if source is None and sources[0].random_weights:
        raise ValueError(
            f"{names[0]} was trained on a backbone with random weights, which were not saved. Train it again on "
            "pretrained weights, or on those in a file, with --weights FILE."
        )
    wanted = sources[0]
    if source is not None:  # what it leaves open is as recorded in the adapter
        size, kind = source.image_size or wanted.image_size, source.model_class or wanted.model_class
        wanted = replace(source, image_size=size, model_class=kind)
    backbone, _ = load_backbone(wanted)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The adapter .* was trained on a backbone with the fingerprint")
        try:
            model = PeftModel.from_pretrained(backbone, configs[0].folder, adapter_name=_name(0))
            for position, config in enumerate(configs[1:], 1):
                model.load_adapter(config.folder, _name(position))
        except (UserWarning, ValueError) as error:
            raise ValueError(
                f"{error} The backbone loaded here is {wanted.model}; {names[0]} was trained on {sources[0].model}."
            ) from None
    for position, name in enumerate(names):
        wrong = not_finite(adapter_weights(model, _name(position)).items())
        if wrong:
            raise ValueError(
                f"{len(wrong)} weights of the adapter {name} are NaN or infinite, {wrong[0]} for example, so it "
                "predicts nothing. Train it again with a lower --lr, or load an earlier copy."
            )
    return Loaded(model.eval(), list(names), descriptions)


def _config(name: str) -> AIMConfig:
    path = Path(name)
    if path.exists() and not (path / CONFIG_NAME).is_file():
        raise ValueError(
            f"{name} is not an AIM adapter: it has no {CONFIG_NAME}. Give the adapter first, then the videos."
        )
    if not path.exists() and len(path.parts) != 2:  # a Hub id has an owner and a name
        raise ValueError(
            f"{name} is neither a folder nor a Hub id, OWNER/NAME. Give the folder or Hub id of an AIM adapter."
        )
    try:
        config = AIMConfig.from_pretrained(name)
        config.fetch_weights()
    except (ValueError, OSError) as error:
        raise ValueError(f"{name} cannot be loaded as an AIM adapter: {error}") from error
    return config


def _name(position: int) -> str:
    return f"adapter{position}"


def _named(source: Source) -> str:
    """Return the name of a backbone, with the size of its images if it is not its own."""
    return f"{source.model}{f' at {source.image_size} px' if source.image_size else ''}"
