"""What PEFT expects of a config."""

from __future__ import annotations

import copy
import pickle

import peft
import pytest
from expectations.adapted import config
from peft import PeftConfig, PeftType, get_peft_config

from peft_aim import AIMConfig


def test_a_config_can_be_copied_pickled_and_built_by_name(tmp_path):
    options = config(num_labels=3, target_modules=["blocks.0", "blocks.1"], peft_type="overwritten")
    assert options.peft_type is PeftType.AIM and options.peft_version == peft.__version__
    for twin in (copy.copy(options), copy.deepcopy(options), pickle.loads(pickle.dumps(options))):
        assert twin.to_dict() == options.to_dict()
    options.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).to_dict() == options.to_dict()
    saved = AIMConfig.from_json_file(str(tmp_path / "adapter_config.json"))
    assert {**saved, "target_modules": set(saved["target_modules"])} == options.to_dict()
    for built in (PeftConfig.from_peft_type(peft_type="AIM", num_frames=3), get_peft_config({"peft_type": "AIM"})):
        assert isinstance(built, AIMConfig)


def test_json_without_a_peft_type_raises_an_error(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"foo": "bar", "baz": 123}')
    with pytest.raises(TypeError, match="missing required keys: {'peft_type'}"):
        PeftConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="AIMConfig has no option baz, foo"):
        AIMConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "FEATURE_EXTRACTION", "invalid"])
def test_task_types_raise_an_error(task_type):
    with pytest.raises(ValueError, match=f"(task_type='|Invalid task type: '){task_type}'"):
        config(task_type=task_type)
