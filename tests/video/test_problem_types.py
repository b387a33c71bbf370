"""The problem type of a backbone is not that of its adapters."""

from __future__ import annotations

import pytest
import transformers as tf
import zoo

from peft_aim import AIMConfig
from peft_aim.video.backbones import Source
from peft_aim.video.data import Data
from peft_aim.video.description import Description
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.adapting import adapt


@pytest.mark.parametrize("problem", ["multi_label_classification", None])
def test_the_problem_type_of_the_backbone_is_not_that_of_the_adapter(problem, tmp_path):
    """The backbone was fine-tuned with several labels per image; the adapter predicts one class per video."""
    backbone = tf.ViTForImageClassification(tf.ViTConfig(**zoo.SMALL, problem_type=problem))
    backbone.save_pretrained(tmp_path / "backbone")
    tf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "backbone")
    source = Source(str(tmp_path / "backbone"))
    model, description = adapt(Data(["a", "b"], train=[]), source, Recipe(), num_frames=zoo.FRAMES)
    description.write(model.peft_config["default"])
    model.save_pretrained(tmp_path / "task")
    config = AIMConfig.from_pretrained(tmp_path / "task")
    assert config.problem_type == (problem and "single_label_classification")
    assert Description.read(config, "task").classes == ["a", "b"]
