"""What a quantized backbone saves: bytes of its frozen weights, beside those of the adapters trained on it."""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.cost.plan import Plan
from benchmarks.methods import rivals

Facts = dict[str, Any]


def versions() -> dict[str, str]:
    """Return the versions of the packages that quantize."""
    return {name: importlib.metadata.version(name) for name in ("torchao", "bitsandbytes")}


def quantizing(plan: Plan) -> list[Facts]:
    """Quantize a backbone in several ways, and attach adapters to each.

    Returns:
        For each way, the bytes of the frozen weights, the number of trained parameters, and by how much the backbone's
        features of a random frame change, relative to those in float32.
    """
    found, frame = [], plan.clips()[0, :1]
    with torch.no_grad():
        exact = plan.model().eval()(frame)
    for name, quantize in WAYS.items():
        # In evaluation, bitsandbytes multiplies integers, which takes minutes on a CPU; nothing drops at random here.
        backbone = quantize(plan.model()).train().requires_grad_(False)
        own = next(backbone.parameters()).dtype
        with torch.no_grad():
            drift = (backbone(frame.to(own)).float() - exact).norm() / exact.norm()
        size = stored(backbone)
        parameters = rivals.trained_parameters(rivals.aim(backbone, plan.classes, plan.frames))
        found.append({"row": name, "backbone_bytes": size, "parameters": parameters, "drift": float(drift)})
        print(found[-1], flush=True)
    return found


def stored(model: nn.Module) -> int:
    """Return the bytes of a model's weights as they are stored, with scales and tables of codes."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def with_torchao(model: nn.Module) -> nn.Module:
    """Quantize all linear layers to eight bits, a scale for each output."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return model


def with_bitsandbytes(kind: str, **options: Any) -> Callable[[nn.Module], nn.Module]:
    """Return a function that replaces all linear layers by those of bitsandbytes."""

    def replace(model: nn.Module) -> nn.Module:
        import bitsandbytes

        for name, layer in list(model.named_modules()):
            if type(layer) is nn.Linear:
                bias = layer.bias is not None
                new = getattr(bitsandbytes.nn, kind)(layer.in_features, layer.out_features, bias=bias, **options)
                new.load_state_dict(layer.state_dict())
                model.set_submodule(name, new)
        return model.to("cpu")  # quantizes

    return replace


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float32": lambda model: model,
    "bfloat16": lambda model: model.bfloat16(),
    "8 bits, torchao": with_torchao,
    "8 bits, bitsandbytes": with_bitsandbytes("Linear8bitLt", has_fp16_weights=False, threshold=6.0),
    "4 bits (nf4), bitsandbytes": with_bitsandbytes("Linear4bit", quant_type="nf4", compute_dtype=torch.float32),
}
