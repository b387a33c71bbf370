"""What quantized backbones cannot do is said; quantized activations; fingerprints of quantized weights."""

from __future__ import annotations

import re

import pytest
import torch
import zoo
from peft import PeftModel, get_peft_model
from quantised.quantizing import dynamic, needs, quantize, quiet
from torch import Tensor, nn

from peft_aim import AIMConfig

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # by torchao, when it copies a state dict


def adapt(backbone: nn.Module, **options: object) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(backbone, AIMConfig(num_frames=zoo.FRAMES, **{"init_weights": False, **options})).eval()


@torch.no_grad()
def scores(model: nn.Module, clips: Tensor | None = None) -> Tensor:
    return zoo.scores(model.eval()(zoo.make_clips() if clips is None else clips))


# Packed in a way that nobody knows.


class Packed(nn.Module):
    """A linear layer that keeps its weights as one row of bytes, and does not tell its widths."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.scale = float(layer.weight.detach().abs().max()) / 127
        codes = (layer.weight.detach() / self.scale).round().to(torch.int8)
        self.register_buffer("codes", codes.flatten())
        self._rows, self.bias = len(codes), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.codes.view(self._rows, -1) * self.scale, self.bias)


class PackedLinear(Packed):
    """The same with the interface of nn.Linear."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer)
        self.in_features, self.out_features = layer.in_features, layer.out_features


def packed(kind: type[Packed]) -> nn.Module:
    model = zoo.build("timm_vit")
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and name.startswith("blocks"):
            model.set_submodule(name, kind(layer))
    return model.requires_grad_(False)


def test_layers_of_unknown_widths_are_rejected():
    message = (
        "blocks.0.attn.qkv, a Packed, stores its weights in a way that AIM does not know: 'codes' is a torch.int8 "
        "tensor (3072,). How many features it takes and returns cannot be told from that. Give it the attributes "
        "in_features and out_features, as layers of bitsandbytes, torchao, optimum-quanto and HQQ have them, or "
        "quantize the model after adapting it."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        adapt(packed(Packed))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.bool])
@pytest.mark.parametrize("learned", [False, True])
def test_masks_are_no_weights(dtype, learned):
    class Masked(nn.Module):
        """A module without layers that has a mask, and counts in 64 bits."""

        def __init__(self):
            super().__init__()
            mask, index = torch.ones(17, 1).to(dtype), torch.arange(17)
            mask[3] = 0
            if learned:
                self.mask, self.index = (nn.Parameter(t, requires_grad=False) for t in (mask, index))
            else:
                self.register_buffer("mask", mask)
                self.register_buffer("index", index)

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.mask.to(x)).index_select(1, self.index)

    model = zoo.build("timm_vit")
    model.norm_pre = Masked()
    assert scores(adapt(model)).shape == (2, 5)


def test_layers_with_the_interface_of_linear_are_enough(tmp_path):
    backbone = packed(PackedLinear)
    before = zoo.frame_average(backbone, zoo.make_clips())
    model = adapt(backbone, init_weights=True)
    assert torch.equal(scores(model), before)
    with pytest.warns(UserWarning, match="is saved without a fingerprint of its backbone, since some of the"):
        model.save_pretrained(tmp_path)
    assert AIMConfig.from_pretrained(tmp_path).backbone_fingerprint is None


# Activations that are quantized, too.


def test_training_is_rejected_where_gradients_do_not_pass():
    message = (
        "Gradients do not pass through blocks.0.attn.qkv, a Linear with a Int8Tensor as weight, so adapters before it "
        "would learn from wrong gradients. It quantizes its inputs, too: to train, quantize the weights only "
        "(Int8WeightOnlyConfig in torchao). For inference, load a trained adapter with PeftModel.from_pretrained, or "
        "give inference_mode=True."
    )
    backbone = dynamic()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        adapt(backbone)
    assert not hasattr(backbone, "aim_clips")


def test_adapters_run_on_quantized_activations(tmp_path):
    """Activations are quantized token by token, so clips never mix."""
    before = zoo.frame_average(dynamic(), zoo.make_clips())
    assert torch.equal(scores(adapt(dynamic(), inference_mode=True, init_weights=True)), before)
    trained = adapt(quantize("torchao_int8"))
    trained.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(dynamic(), tmp_path)
    exact = scores(trained)
    # Eight bits round by up to 1/254 of a token's largest feature, in each of about a dozen layers.
    assert 0 < (scores(model) - exact).abs().max() < 0.05 * exact.abs().max()
    clips = zoo.make_clips()
    clips[0] = torch.randn_like(clips[0])
    assert torch.equal(scores(model, clips)[1], scores(model)[1])


# Quantized after adapting.


@pytest.mark.parametrize("which", ["backbone", "everything"])
def test_adapted_models_are_quantized(which, tmp_path):
    needs("torchao")
    with quiet():
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    model = adapt(zoo.build("timm_vit"))
    exact = scores(model)
    alone = {"filter_fn": lambda module, name: isinstance(module, nn.Linear) and "aim_" not in name}
    quantize_(model, Int8WeightOnlyConfig(), **(alone if which == "backbone" else {}))
    assert 0 < (scores(model) - exact).abs().max() < 0.05 * exact.abs().max()
    if which == "backbone":
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(zoo.build("timm_vit"), tmp_path)  # the fingerprints agree
        assert torch.equal(scores(loaded), exact)
    else:
        with pytest.raises(ValueError, match=r"is no plain tensor but a torchao\..*Int8Tensor. If quantize_"):
            model.save_pretrained(tmp_path)


# Fingerprints.


@pytest.mark.parametrize("name", ["bnb_int8_layers", "bnb_fp4_stored_as_float", "torchao_int8", "quanto_int8"])
def test_adapters_move_between_a_backbone_and_its_quantized_copies(name, tmp_path):
    """Without a warning; on other weights, there is one."""
    adapt(quantize(name)).save_pretrained(tmp_path)
    PeftModel.from_pretrained(zoo.build("timm_vit"), tmp_path)
    other = zoo.build("timm_vit")
    for parameter in other.parameters():
        parameter.data = torch.randn_like(parameter) * parameter.std()
    with pytest.warns(UserWarning, match="trained on a backbone with the fingerprint .*:quantized"):
        PeftModel.from_pretrained(other, tmp_path)


@pytest.mark.parametrize("name", ["plain", "torchao_int8"])
def test_the_fingerprint_is_kept_if_only_the_adapter_is_given(name, tmp_path):
    model = adapt(zoo.build("timm_vit") if name == "plain" else quantize(name))
    model.save_pretrained(tmp_path / "all")
    adapter = {key: tensor for key, tensor in model.state_dict().items() if "aim_" in key}
    model.save_pretrained(tmp_path / "adapter", state_dict=adapter)
    one, other = (AIMConfig.from_pretrained(tmp_path / which) for which in ("all", "adapter"))
    assert one.backbone_fingerprint == other.backbone_fingerprint is not None


def test_reading_quantized_weights_changes_nothing(tmp_path):
    """PEFT's own function loses the scales of eight-bit weights on the CPU."""
    model = adapt(quantize("bnb_int8_layers"))
    before = scores(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(scores(model), before)
