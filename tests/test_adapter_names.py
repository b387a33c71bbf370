"""Names that torch's containers cannot hold are rejected at once, with the reason; others work."""

from __future__ import annotations

import pytest
import torch
import zoo
from peft import PeftModel, get_peft_model

from peft_aim import AIMConfig

WRONG = {"signs.v2": "'signs_v2'", "": "'my_adapter'", "keys": "'keys_adapter'", "a. b": "'a_b'"}


def config() -> AIMConfig:
    return AIMConfig(num_frames=zoo.FRAMES, num_labels=2, init_weights=False)


@pytest.mark.filterwarnings("ignore:Adapter name .. should not be contained in the prefix")
@pytest.mark.parametrize("name", WRONG)
def test_impossible_names_are_rejected_and_leave_nothing(name):
    backbone = zoo.build("timm_vit")
    before = repr(backbone), set(vars(backbone))
    message = rf"An adapter cannot be named {name!r}: .*\. Choose a name of letters, .* such as {WRONG[name]}\."
    with pytest.raises(ValueError, match=message):
        get_peft_model(backbone, config(), adapter_name=name)
    assert (repr(backbone), set(vars(backbone))) == before
    model = get_peft_model(backbone, config())
    before = repr(model)
    with pytest.raises(ValueError, match=message):
        model.add_adapter(name, config())
    assert list(model.peft_config) == ["default"] and repr(model) == before


@pytest.mark.parametrize("name", ["signs_v2", "words-2", "a b", "Zeichen für Wörter"])
def test_other_names_round_trip(name, tmp_path):
    model = get_peft_model(zoo.build("timm_vit"), config(), adapter_name=name).eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(zoo.build("timm_vit"), tmp_path / name, adapter_name=name)
    assert torch.equal(loaded(zoo.make_clips()), model(zoo.make_clips()))
