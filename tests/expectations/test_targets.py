"""What PEFT expects of target modules."""

from __future__ import annotations

import pytest
import torch
import zoo
from expectations.adapted import EVERYTHING, adapt, build, config
from peft.tuners.tuners_utils import inspect_matched_modules
from torch import nn


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        ("blocks.0 blocks.1 blocks.2", {}),
        ("blocks.0 blocks.1 blocks.2 head", {"num_labels": 3}),
        ("blocks.0 blocks.1", {"target_modules": r"blocks\.[01]"}),
        ("blocks.0 blocks.1", {"target_modules": ["blocks.0", "blocks.1"]}),
        ("blocks.1 blocks.2", {"exclude_modules": r"blocks\.0"}),
        ("blocks.2", {"target_modules": ["blocks.0", "blocks.2"], "exclude_modules": ["blocks.0"]}),
    ],
)
def test_targeted_modules_are_listed(expected, options):
    model = adapt(temporal_embedding=False, **options)
    assert model.targeted_module_names == expected.split()
    assert inspect_matched_modules(model)["matched"] == expected.split()
    model.add_adapter("other", config(temporal_embedding=False, **options))
    assert model.targeted_module_names == expected.split()


def test_excluding_all_targets_raises_an_error():
    for targets in (["blocks.0"], ["blocks.0", "nowhere"]):
        with pytest.raises(ValueError, match="No block is left"):
            adapt(target_modules=targets, exclude_modules=["blocks.0"])


def test_exclude_modules_without_a_match_warns():
    with pytest.warns(UserWarning, match="You have passed exclude_modules=.* but no modules were excluded"):
        adapt(exclude_modules=["nowhere"])


def test_containers_in_modules_to_save_raise_an_error(clips):
    backbone = build("timm_vit")
    backbone.extra = nn.ModuleDict({"linear": nn.Linear(2, 2)})
    untouched, before = repr(backbone), zoo.frame_average(backbone, clips)
    with pytest.raises(TypeError, match="modules_to_save cannot be applied to modules of type .*ModuleDict"):
        adapt(backbone, modules_to_save=["extra"])
    assert repr(backbone) == untouched and not hasattr(backbone, "peft_config")
    assert torch.equal(zoo.frame_average(backbone, clips), before)


def test_a_second_adapter_adds_nothing_inside_the_first():
    model = adapt("timm_clip", "first", **EVERYTHING)
    before = {key.replace(".first", "") for key in model.state_dict()}
    model.add_adapter("second", config(**EVERYTHING))
    assert {key.replace(".first", "").replace(".second", "") for key in model.state_dict()} == before
