"""Backbones that were compiled before they are adapted: every adapter runs, and files do not depend on compilation."""

from __future__ import annotations

import json

import pytest
import torch
import zoo
from peft import PeftModel, get_peft_model
from torch import nn

from peft_aim import AIMConfig


class Wrap(nn.Module):
    """A wrapper as people write it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.module(*args, **kwargs)


def each_block(change):
    def change_each(model: nn.Module) -> nn.Module:
        blocks = model.blocks if hasattr(model, "blocks") else getattr(model.vit, "layers", model.vit)
        blocks = getattr(getattr(blocks, "encoder", None), "layer", blocks)  # transformers 4
        for index, block in enumerate(blocks):
            changed = change(block)
            blocks[index] = block if changed is None else changed
        return model

    return change_each


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # that dynamo looks at

WRAPPERS = {
    "blocks": each_block(compiled),
    "blocks in place": each_block(lambda block: block.compile(backend="eager")),
    "model": compiled,
    "wrapped blocks": each_block(Wrap),
    "wrapped model": Wrap,
}
SAME_NAMES = ("blocks", "blocks in place", "model")


def adapt(backbone: nn.Module):
    torch.manual_seed(0)
    return get_peft_model(backbone, AIMConfig(num_frames=zoo.FRAMES, init_weights=False, num_labels=3)).eval()


def scores_and_gradients(model: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    scores = zoo.scores(model(zoo.make_clips()))
    scores.square().sum().backward()
    return scores, [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("has_run", [False, True], ids=["new", "has run"])
@pytest.mark.parametrize("how", WRAPPERS)
def test_all_adapters_of_a_compiled_backbone_run_and_are_trained(how, has_run):
    expected, gradients = scores_and_gradients(adapt(zoo.build("timm_vit")))
    backbone = WRAPPERS[how](zoo.build("timm_vit"))
    before = backbone(zoo.make_clips().flatten(0, 1)) if has_run else None
    model = adapt(backbone)
    scores, found = scores_and_gradients(model)
    assert torch.allclose(scores, expected, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, gradients, strict=True))
    if has_run:
        assert torch.equal(model.unload()(zoo.make_clips().flatten(0, 1)), before)


@torch.no_grad()
@pytest.mark.parametrize("how", SAME_NAMES)
def test_adapters_of_a_compiled_backbone_fit_the_plain_one_and_back(how, tmp_path):
    clips, wrap = zoo.make_clips(), WRAPPERS[how]
    model, plain = adapt(wrap(zoo.build("hf_vit"))), adapt(zoo.build("hf_vit"))
    expected = zoo.scores(plain(clips))
    model.save_pretrained(tmp_path / "compiled")
    plain.save_pretrained(tmp_path / "plain")
    weights, configs = (
        [(tmp_path / folder / file).read_bytes() for folder in ("compiled", "plain")]
        for file in ("adapter_model.safetensors", "adapter_config.json")
    )
    assert weights[0] == weights[1]
    of_compiled, of_plain = map(json.loads, configs)
    for key in ("target_modules", "backbone_fingerprint"):
        assert of_compiled[key] == of_plain[key]
    for backbone in (zoo.build("hf_vit"), wrap(zoo.build("hf_vit"))):
        loaded = PeftModel.from_pretrained(backbone, tmp_path / "compiled").eval()
        assert torch.allclose(zoo.scores(loaded(clips)), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_blocks_compiled_by_torch_jit_are_rejected():
    tokens = torch.randn(2, 17, 32)
    backbone = each_block(lambda block: torch.jit.trace(block, tokens))(zoo.build("timm_vit"))
    with pytest.raises(ValueError, match=r"'blocks.0' is compiled by torch.jit, so adapters cannot .* torch.compile"):
        adapt(backbone)
