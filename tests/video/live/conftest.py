from dataclasses import replace

import pytest
import torch
from peft import get_peft_model

from peft_aim import AIMConfig
from peft_aim.video.backbones import Source, load_backbone
from peft_aim.video.description import Description
from peft_aim.video.recipe import Recipe

CLASSES = ["dark", "gray", "light"]


@pytest.fixture(scope="session")
def adapter(image_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an adapter for 4 frames, 2 apart, of videos with 10 frames per second; its weights are random."""
    torch.manual_seed(0)
    backbone, preprocessing = load_backbone(image_model)
    model = get_peft_model(backbone, AIMConfig(num_frames=4, id2label=dict(enumerate(CLASSES))))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.5)
    description = Description.new(Recipe(frames=4, stride=2), preprocessing, Source(image_model), CLASSES)
    replace(description, seconds=1.0, rate=10.0).write(model.active_peft_config)
    folder = tmp_path_factory.mktemp("watched") / "adapter"
    model.save_pretrained(folder)
    return str(folder)
