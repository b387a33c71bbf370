"""Small adapted models, and what these tests ask of them."""

from __future__ import annotations

import itertools

import peft
import torch
import zoo
from packaging import version
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peft_aim import AIMConfig

EVERYTHING = {
    "num_labels": 3,
    "final_norm": True,
    "temporal_adapters": 2,
    "temporal_conv": True,
    "temporal_embedding": "blocks",
    "head_dropout": 0.1,
}
BEFORE_022 = version.parse(peft.__version__) < version.parse("0.22.dev0")
seeds = itertools.count(100)


def build(name: str) -> nn.Module:
    """Build a backbone, then seed torch anew: no two adapters have the same random weights by accident."""
    backbone = zoo.build(name)
    torch.manual_seed(next(seeds))
    return backbone


def config(**options: object) -> AIMConfig:
    return AIMConfig(**{"num_frames": zoo.FRAMES, "init_weights": False, **options})


def adapt(backbone: str | nn.Module = "timm_vit", adapter_name: str = "default", **options: object) -> PeftModel:
    backbone = build(backbone) if isinstance(backbone, str) else backbone.eval()
    return get_peft_model(backbone, config(**options), adapter_name=adapter_name).eval()


def keys_of(model: nn.Module, *adapter_names: str) -> set[str]:
    """Return the names of all parameters of the given adapters."""
    return {key for key, _ in model.named_parameters() if set(key.split(".")) & set(adapter_names)}


def trainable(model: nn.Module) -> set[str]:
    return {key for key, parameter in model.named_parameters() if parameter.requires_grad}


def with_gradient(model: nn.Module) -> set[str]:
    return {key for key, parameter in model.named_parameters() if parameter.grad is not None}


def tuner_layers(model: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def inside(name: str, **behind: nn.Module) -> nn.Module:
    """Build a model that has a backbone under the given name, and further layers behind it."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for key, module in {name: build("timm_vit"), **behind}.items():
                self.add_module(key, module)

        def forward(self, x: Tensor) -> Tensor:
            x = self._modules[name](x)
            return sum((self._modules[key](x) for key in behind), start=x)

    return Outer().eval()
