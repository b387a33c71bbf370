from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from peft_aim import AIMConfig
from peft_aim.video.adapters import Loaded, load_adapters
from peft_aim.video.backbones import Source, load_backbone
from peft_aim.video.description import Description
from peft_aim.video.live import watch
from peft_aim.video.recipe import Recipe

CLASSES = ["dark", "gray", "light"]


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load each adapter once, for all tests."""
    monkeypatch.setattr(watch, "load_adapters", lambda names, source: loaded(*names))


@cache
def loaded(name: str) -> Loaded:
    return load_adapters([name])


@pytest.fixture(scope="session")
def adapter(image_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an adapter that is not causal."""
    return saved(image_model, tmp_path_factory.mktemp("watched") / "adapter", causal=False)


@pytest.fixture(scope="session")
def causal_adapter(image_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an adapter that is causal."""
    return saved(image_model, tmp_path_factory.mktemp("watched") / "causal", causal=True)


def saved(image_model: str, folder: Path, causal: bool) -> str:
    """Save an adapter for 4 frames, 2 apart, of videos with 10 frames per second; its weights are random."""
    torch.manual_seed(0)
    backbone, preprocessing = load_backbone(image_model)
    config = AIMConfig(num_frames=4, id2label=dict(enumerate(CLASSES)), causal=causal)
    model = get_peft_model(backbone, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.5)
    recipe = Recipe(frames=4, stride=2, causal=causal)
    description = Description.new(recipe, preprocessing, Source(image_model), CLASSES)
    replace(description, seconds=1.0, rate=10.0).write(model.active_peft_config)
    model.save_pretrained(folder)
    return str(folder)
