"""The frozen weights that an adapter relies on, dequantized where they are quantized, and their fingerprint."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import torch
from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from peft_aim.layers import AIMHead, AIMNorm
from peft_aim.saving.fingerprint import fingerprint_of, same_weights
from peft_aim.saving.weights import containers_in, plain
from peft_aim.tracing import is_linear, is_packed, is_plain


def compare_backbone(model: nn.Module, adapter_name: str, trained_on: str | None) -> None:
    """Warn if the frozen weights differ from those that an adapter was trained on.

    Args:
        model: The adapted model.
        adapter_name: The adapter.
        trained_on: The fingerprint of the backbone that it was trained on, None if nobody knows.
    """
    here = None if trained_on is None else backbone_fingerprint(model, adapter_name)
    if here is not None and not same_weights(trained_on, here):
        warnings.warn(
            f"The adapter {adapter_name!r} was trained on a backbone with the fingerprint {trained_on}, but this "
            f"{type(model).__name__} has {here}. With other weights its results will be wrong: load the pretrained "
            "weights into the backbone before the adapter.",
            stacklevel=3,
        )


def fingerprint_to_save(model: nn.Module, adapter_name: str, given: Mapping[str, Tensor]) -> str | None:
    """Compute the fingerprint to save with an adapter, and warn if there is none.

    Args:
        model: The adapted model.
        adapter_name: The adapter.
        given: See :func:`backbone_fingerprint`.
    """
    found = backbone_fingerprint(model, adapter_name, given)
    if found is None:
        warnings.warn(
            f"The adapter {adapter_name!r} is saved without a fingerprint of its backbone, since some of the frozen "
            "weights cannot be read: they are in shards, on the device 'meta', or quantized in a way that neither "
            "PEFT nor AIM knows. Nobody will notice if it is loaded onto a backbone with other weights.",
            stacklevel=5,
        )
    return found


def backbone_fingerprint(model: nn.Module, adapter_name: str, given: Mapping[str, Tensor] | None = None) -> str | None:
    """Compute the fingerprint of the frozen weights that an adapter relies on.

    Args:
        model: The adapted model.
        adapter_name: The adapter.
        given: The model's ``state_dict()`` if it was gathered elsewhere, perhaps from shards. If it contains no frozen
            weights, those of the model are used.

    Returns:
        See :func:`~peft_aim.saving.fingerprint.fingerprint_of`; None if some weights cannot be read.
    """
    added = tuple(f"{plain(name)}." for name, _ in containers_in(model))
    replaced = tuple(f"{plain(name)}." for name, module in model.named_modules() if _replaces(module, adapter_name))
    packed = {plain(name): module for name, module in model.named_modules() if _is_unreadable(module)}
    packed = {name: module for name, module in packed.items() if not f"{name}.".startswith((*added, *replaced))}

    def frozen(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named = {plain(name): tensor for name, tensor in weights.items()}
        return {name: tensor for name, tensor in named.items() if not name.startswith((*added, *replaced))}

    found = frozen(given or {}) or frozen(dict(_tensors(model)))
    quantized = any(not _is_weight_of(layer, found.get(f"{name}.weight")) for name, layer in packed.items())
    return fingerprint_of(_readable(found, packed), quantized)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over what is in ``state_dict()``, without gathering shards, for which all processes would be needed."""
    yield from model.named_parameters(remove_duplicate=False)
    for name, module in model.named_modules(remove_duplicate=False):
        for key, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if key not in module._non_persistent_buffers_set:
                yield f"{name}.{key}".lstrip("."), buffer


def _readable(weights: dict[str, Tensor], packed: dict[str, nn.Module]) -> Iterator[tuple[str, Tensor | None]]:
    """Iterate over weights, with one tensor for each packed layer, and None in place of those that cannot be read."""
    inside = tuple(f"{name}." for name in packed)
    yield from ((name, tensor) for name, tensor in weights.items() if not name.startswith(inside))
    for name, layer in packed.items():
        gathered = weights.get(f"{name}.weight")
        yield f"{name}.weight", gathered if _is_weight_of(layer, gathered) else dequantized(layer)
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor):  # that of HQQ is in its state dict, but no parameter
            yield f"{name}.bias", weights.get(f"{name}.bias", bias)


@torch.no_grad()
def dequantized(layer: nn.Module) -> Tensor | None:
    """Return the weight of a quantized layer as a plain tensor, None if nobody knows how to read it.

    Example:
        >>> dequantized(nn.Linear(4, 2)).shape
        torch.Size([2, 4])
    """
    own = layer._parameters.get("weight")
    try:
        weight = dequantize_module_weight(layer)  # of bitsandbytes, torchao and HQQ
        weight = weight if is_plain(weight) else weight.dequantize()
    except Exception:  # whatever a foreign layer raises
        return None
    finally:
        if own is not None:  # PEFT replaces eight-bit weights on the CPU, without their scales
            layer._parameters["weight"] = own
    return weight.detach() if _is_weight_of(layer, weight) else None


def _is_unreadable(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return is_packed(module) or not (weight is None or is_plain(weight))


def _is_weight_of(layer: nn.Module, weight: Tensor | None) -> bool:
    if weight is None or not is_plain(weight):
        return False
    return not is_linear(layer) or weight.shape == (layer.out_features, layer.in_features)


def _replaces(module: nn.Module, adapter_name: str) -> bool:
    if isinstance(module, ModulesToSaveWrapper):
        return adapter_name in module.modules_to_save
    return isinstance(module, (AIMHead, AIMNorm)) and adapter_name in module.adapters
