from __future__ import annotations

import json
import os
import re
from dataclasses import fields, replace

import pytest
from peft import PeftConfig, PeftModel, PeftType
from torch import nn

from peft_aim import AIMConfig


def test_defaults_are_those_of_the_paper():
    config = AIMConfig()
    assert (config.num_frames, config.bottleneck_ratio, config.scale, config.temporal_adapters) == (8, 0.25, 0.5, 1)
    assert config.spatial and config.temporal and config.joint and config.temporal_embedding
    assert config.peft_type == PeftType.AIM == "AIM"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames=0 is not a positive integer"),
        ({"num_frames": -3}, "num_frames=-3 is not a positive integer"),
        ({"num_frames": 8.0}, "num_frames=8.0 is not a positive integer"),
        ({"num_frames": True}, "num_frames=True is not a positive integer"),
        ({"bottleneck_ratio": 0}, r"bottleneck_ratio=0 is not a number in \(0, 1\]"),
        ({"bottleneck_ratio": 1.5}, r"bottleneck_ratio=1.5 is not a number in \(0, 1\]"),
        ({"bottleneck_ratio": "0.25"}, "bottleneck_ratio='0.25' is not a number"),
        ({"spatial": 1}, "spatial=1 is not a bool. Give True or False"),
        ({"init_weights": None}, "init_weights=None is not a bool. Give True or False"),
        ({"temporal_adapters": 3}, "temporal_adapters=3 is neither 1"),
        ({"temporal_adapters": 0}, "set temporal=False"),
        ({"scale": float("nan")}, "scale=nan is not a finite number"),
        ({"drop_path": 1.0}, r"drop_path=1.0 is not a number in \[0, 1\)"),
        ({"num_labels": 0}, "num_labels=0 is not a positive integer"),
        ({"id2label": ["a", "b"]}, "is not a dict from class index to name"),
        ({"id2label": {0: 1}}, "is not a dict from class index to name"),
        ({"id2label": {"zero": "a"}}, "keys .* that are not class indices"),
        ({"id2label": {0: "a", 2: "b"}}, r"indices \[0, 2\].*without gaps"),
        ({"id2label": {0: "a"}, "num_labels": 2}, "num_labels=2 contradicts id2label, which names 1"),
        ({"target_modules": []}, "neither a regular expression nor a list of names"),
        ({"target_modules": 3}, "target_modules=3 is neither"),
        ({"exclude_modules": [""]}, "exclude_modules"),
        ({"layers_to_transform": -1}, "layers_to_transform=-1 is not an index"),
        ({"layers_to_transform": []}, r"layers_to_transform=\[\]"),
        ({"norm1_module": ""}, "norm1_module='' is not the name of a module"),
        ({"attention_module": 1}, "attention_module=1"),
        ({"modules_to_save": "norm"}, "modules_to_save='norm' is not a list"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS' selects a PEFT wrapper for text models"),
        ({"temporal_adapters": 2, "temporal": False}, "temporal_adapters=2 contradicts temporal=False"),
        ({"drop_path": 0.2, "temporal": False, "joint": False}, "drop_path=0.2 has no effect: it acts on"),
        (
            {"spatial": False, "temporal": False, "joint": False, "temporal_embedding": False},
            "all False and num_labels is not given, so there is nothing to train",
        ),
        ({"num_frame": 8}, "AIMConfig has no option num_frame.*newer version.*pip install -U"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_wrong_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        AIMConfig(**options)


def test_saved_configs_load_unchanged(tmp_path):
    config = AIMConfig(
        num_frames=4,
        id2label={0: "push", 1: "pull"},
        target_modules=["blocks.1", "blocks.0"],
        layers_to_transform=[1, 0],
    )
    config.save_pretrained(tmp_path)
    for loaded in (AIMConfig.from_pretrained(tmp_path), PeftConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, AIMConfig)
        assert loaded == config
        assert loaded.id2label == {0: "push", 1: "pull"}


def test_options_that_are_none_are_not_written_nor_causal_false(tmp_path):
    """So that versions that do not know an option read the adapters that do not use it."""
    AIMConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved.keys() - {option.name for option in fields(PeftConfig)} == {
        option.name for option in fields(AIMConfig) if option.default is not None and option.name != "causal"
    } - {option.name for option in fields(PeftConfig)}
    assert "problem_type" not in saved and saved["revision"] is None  # transformers reads PEFT's own options
    assert AIMConfig(**AIMConfig().to_dict()) == AIMConfig()
    AIMConfig(num_labels=2, problem_type="regression").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["problem_type"] == "regression"


BROKEN = {
    "truncated": (b'{"peft_type": "AIM", ', r"Expecting property name .*"),
    "empty": (b"", r"Expecting value: .*"),
    "no text": (b"\xff\xfe\xff", r".* codec can't decode .*"),
    "a list": (b"[1, 2]", "it contains a list, not options by name"),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("load", ["AIMConfig", "PeftConfig", "PeftModel"])
def test_broken_configs_are_named_with_their_path(load, how, tmp_path):
    content, reason = BROKEN[how]
    path = tmp_path / "adapter_config.json"
    path.write_bytes(content)
    loads = {
        "AIMConfig": AIMConfig.from_pretrained,
        "PeftConfig": PeftConfig.from_pretrained,
        "PeftModel": lambda folder: PeftModel.from_pretrained(nn.Linear(2, 2), folder),
    }
    message = rf"^{re.escape(str(path))} is broken \({reason}\), so nothing was loaded. Get the file again.$"
    with pytest.raises(ValueError, match=message):
        loads[load](tmp_path)


def test_configs_of_a_newer_version_are_rejected(tmp_path):
    AIMConfig().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rotary_time": True}))
    for cls in (AIMConfig, PeftConfig):
        with pytest.raises(ValueError, match="no option rotary_time.*newer version"):
            cls.from_pretrained(tmp_path)


def test_replaced_configs_have_no_folder(tmp_path):
    AIMConfig().save_pretrained(tmp_path)
    config = AIMConfig.from_pretrained(tmp_path)
    assert config.folder == os.path.join(tmp_path, "")
    assert replace(config).folder is None
