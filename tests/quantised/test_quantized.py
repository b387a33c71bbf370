"""Adapters on quantized backbones: the same laws as on plain ones, training, saving, loading and swapping."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from quantised.quantizing import QUANTIZED, quantize
from torch import nn

from benchmarks.coverage import laws
from peft_aim import AIMConfig, hotswap_adapter
from peft_aim.backbone import inspect_backbone
from peft_aim.layers import AIMLayer
from peft_aim.recompute import SETTINGS
from peft_aim.tracing import is_packed

# One for each way to store weights: bytes of the right shape, bytes packed in floats, tensor subclasses, other layers.
SAMPLE = ("bnb_int8", "bnb_fp4_stored_as_float", "torchao_int8", "quanto_int8")
# torch.equal is not defined for all quantized weights, so unloading has a test of its own.
LAWS = [law for law in laws.LAWS if law is not laws.unloading_gives_back_the_backbone]

pytestmark = [
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),  # by torchao, when it copies a state dict
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated"),  # PEFT calls it by that name
]


def adapt(backbone: nn.Module, **options: object) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(backbone, AIMConfig(num_frames=zoo.FRAMES, **{"init_weights": False, **options})).eval()


def train(model: nn.Module, steps: int = 8) -> tuple[float, float]:
    """Train on two clips, and return the loss before and after."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    labels, before = torch.tensor([0, 1]), scores(model)
    for _ in range(steps):
        nn.functional.cross_entropy(zoo.scores(model.train()(zoo.make_clips())), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    before, after = (nn.functional.cross_entropy(found, labels).item() for found in (before, scores(model)))
    return before, after


@torch.no_grad()
def scores(model: nn.Module) -> torch.Tensor:
    return zoo.scores(model.eval()(zoo.make_clips()))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", SAMPLE)
def test_laws_hold(name, law):
    law(lambda: quantize(name), {"pixel_values" if name == "bnb_int8" else "x": zoo.make_clips()})


@pytest.mark.parametrize("name", QUANTIZED)
def test_trained_adapters_are_saved_and_loaded_exactly(name, tmp_path):
    """Every block is adapted with all branches, the loss falls, and no weight of the backbone changes."""
    backbone = quantize(name)
    assert sum(map(is_packed, backbone.modules())) > 4
    before = zoo.frame_average(backbone, zoo.make_clips())
    model = adapt(backbone, num_labels=2, init_weights=True)
    blocks = [module for module in model.modules() if isinstance(module, AIMLayer)]
    assert len(blocks) >= 2 and all(b.has("default", branch) for b in blocks for branch in laws_branches(b))
    assert all(".aim_" in key for key, p in model.named_parameters() if p.requires_grad)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    before_training, after_training = train(model)
    assert after_training < before_training
    model.save_pretrained(tmp_path)
    assert model.peft_config["default"].to_dict()["backbone_fingerprint"].endswith(":quantized")
    loaded = PeftModel.from_pretrained(quantize(name), tmp_path)  # a warning would be an error
    assert torch.equal(scores(loaded), scores(model))
    assert torch.equal(zoo.frame_average(model.unload(), zoo.make_clips()), before)


def laws_branches(block: AIMLayer) -> tuple[str, ...]:
    return ("spatial", "joint") if block.anatomy.attend is None else ("temporal", "spatial", "joint")


@pytest.mark.parametrize("name", SAMPLE)
def test_disabling_and_unloading_restore_the_backbone(name):
    backbone = quantize(name)
    before = zoo.frame_average(backbone, zoo.make_clips())
    model = adapt(backbone)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(scores(model), before)
    assert not torch.equal(scores(model), before)
    unloaded = model.unload()
    assert unloaded is backbone and torch.equal(zoo.frame_average(unloaded, zoo.make_clips()), before)


@pytest.mark.parametrize("name", ["bnb_int8", "bnb_nf4_double", "torchao_int8"])
def test_recomputing_gives_the_same_gradients(name):
    found = {}
    for setting in SETTINGS:
        model = adapt(quantize(name), recompute=setting).train()
        zoo.scores(model(zoo.make_clips())).square().mean().backward()
        found[setting] = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    for gradients in found.values():
        assert all(torch.equal(gradient, found["nothing"][key]) for key, gradient in gradients.items())


@pytest.mark.parametrize("name", ["bnb_int8", "torchao_int8"])
def test_adapters_are_swapped_and_copied(name, tmp_path):
    model = adapt(quantize(name))
    model.save_pretrained(tmp_path)
    expected = scores(model)
    other = adapt(quantize(name))
    train(other, steps=1)
    assert not torch.equal(scores(other), expected)
    twin = copy.deepcopy(other)
    hotswap_adapter(other, tmp_path)
    assert torch.equal(scores(other), expected)
    assert not torch.equal(scores(twin), expected)


@pytest.mark.parametrize("name", ["bnb_int8", "bnb_nf4_double"])
def test_models_prepared_as_for_qlora_train(name):
    prepared = prepare_model_for_kbit_training(quantize(name), gradient_checkpointing_kwargs={"use_reentrant": False})
    before, after = train(adapt(prepared, num_labels=2, init_weights=True))
    assert after < before


@pytest.mark.parametrize("name", ["bnb_int8", "torchao_int8", "quanto_int8"])
def test_copies_of_a_quantized_block_do_not_run(name):
    """The objects in which libraries keep quantization states differ from layer to layer, the blocks do not."""
    backbone, ran = quantize(name), set()
    layers = {key: module for key, module in backbone.named_modules() if key.endswith("mlp.fc1")}
    for key, module in layers.items():
        module.register_forward_hook(lambda *_, key=key: ran.add(key))
    inspect_backbone(backbone)
    assert len(layers) >= 2 and ran == {next(iter(layers))}
