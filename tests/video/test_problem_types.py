"""Adapters for several labels, or for numbers, are not trained or evaluated as if they predicted one class."""

from __future__ import annotations

import pytest

from peft_aim import AIMConfig
from peft_aim.video.backbones import Source
from peft_aim.video.description import Description
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.adapting import adapt

ONE_CLASS = "but peft_aim.video and peft-aim train, evaluate and predict one class per video. Leave problem_type out"


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_other_problem_types_are_rejected(problem):
    with pytest.raises(ValueError, match=f"The adapter to train has problem_type='{problem}', {ONE_CLASS}"):
        adapt(None, Source("timm/none"), Recipe(), problem_type=problem)
    config = AIMConfig(id2label={0: "a", 1: "b"}, problem_type=problem, video={"views": (1, 1)})
    with pytest.raises(ValueError, match=f"The adapter my-task has problem_type='{problem}', {ONE_CLASS}"):
        Description.read(config, "my-task")
