"""Small quantized backbones: one function per way to store weights, on the backbones of the zoo."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as tf
import zoo
from torch import nn

QUANTIZED: dict[str, Callable[[], nn.Module]] = {}  # weights alone: adapters can be trained
NEEDS = "is not installed; adapters on its quantized layers are tested where it is"


def quantized(factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    QUANTIZED[factory.__name__] = factory
    return factory


def quantize(name: str) -> nn.Module:
    return QUANTIZED[name]().eval().requires_grad_(False)


def needs(package: str) -> Any:
    with quiet():
        return pytest.importorskip(package, reason=f"{package} {NEEDS}")


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore what the libraries warn about when they are imported, and when they quantize."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def from_pretrained(name: str, config: Any) -> nn.Module:
    """Save a backbone of the zoo, and load it with transformers in quantized form."""
    backbone = zoo.build(name)
    with tempfile.TemporaryDirectory() as folder, quiet():
        backbone.save_pretrained(folder)
        model = type(backbone).from_pretrained(folder, quantization_config=config)
    model.name_or_path = ""  # the folder is gone, and PEFT would look there
    return model


def replace_layers(model: nn.Module, new: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Replace the linear layers of a timm model's blocks."""
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and name.startswith("blocks"):
            model.set_submodule(name, new(layer))
    return model


def bitsandbytes_layers(kind: str, **options: Any) -> nn.Module:
    bnb = needs("bitsandbytes")

    def new(layer: nn.Linear) -> nn.Module:
        twin = getattr(bnb.nn, kind)(layer.in_features, layer.out_features, **options)
        twin.load_state_dict(layer.state_dict())
        return twin.to("cpu")  # quantizes

    return replace_layers(zoo.build("timm_vit"), new)


def torchao(name: str, make: Callable[[Any], Any]) -> nn.Module:
    needs("torchao")
    with quiet():
        import torchao.quantization as ao

        model = zoo.build(name)
        ao.quantize_(model, make(ao))
    return model


def quanto(name: str, weights: str) -> nn.Module:
    quanto = needs("optimum.quanto")
    model = zoo.build(name)
    with quiet():
        quanto.quantize(model, weights=getattr(quanto, weights))
        quanto.freeze(model)
    return model


@quantized
def bnb_int8() -> nn.Module:
    needs("bitsandbytes")
    return from_pretrained("hf_vit", tf.BitsAndBytesConfig(load_in_8bit=True))


@quantized
def bnb_nf4_double() -> nn.Module:
    needs("bitsandbytes")
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return from_pretrained("hf_dinov2", tf.BitsAndBytesConfig(load_in_4bit=True, **options))


@quantized
def bnb_fp4_stored_as_float() -> nn.Module:
    return bitsandbytes_layers("LinearFP4", quant_storage=torch.float32)


@quantized
def bnb_int8_layers() -> nn.Module:
    return bitsandbytes_layers("Linear8bitLt", has_fp16_weights=False, threshold=6.0)


@quantized
def torchao_int8() -> nn.Module:
    return torchao("timm_vit", lambda ao: ao.Int8WeightOnlyConfig())


@quantized
def torchao_int4() -> nn.Module:
    return torchao(
        "timm_swin", lambda ao: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(16))
    )


@quantized
def torchao_float8() -> nn.Module:
    return torchao("hf_clip", lambda ao: ao.Float8WeightOnlyConfig())


@quantized
def torchao_config() -> nn.Module:
    needs("torchao")
    with quiet():
        import torchao.quantization as ao

        return from_pretrained("hf_vit", tf.TorchAoConfig(ao.Int8WeightOnlyConfig()))


@quantized
def quanto_int8() -> nn.Module:
    return quanto("timm_vit", "qint8")


@quantized
def quanto_config() -> nn.Module:
    needs("optimum.quanto")
    return from_pretrained("hf_vit", tf.QuantoConfig(weights="int4"))


@quantized
def hqq_int4() -> nn.Module:
    needs("hqq")
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=4, group_size=32)
    return replace_layers(
        zoo.build("timm_vit"), lambda layer: HQQLinear(layer, config, compute_dtype=torch.float32, device="cpu")
    )


def dynamic() -> nn.Module:
    """A backbone whose activations are quantized, too."""
    return torchao("timm_vit", lambda ao: ao.Int8DynamicActivationInt8WeightConfig()).requires_grad_(False)
