"""What a saved adapter must hold to be loaded, and what it says of the backbone it was trained on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from peft_aim.layers import AIMHead, AIMNorm, AIMTunerLayer

Shapes = dict[str, tuple[int, ...]]

# What wrapping puts into the names of weights.
WRAPPERS = ("base_model.model.", "_orig_mod.", "_fsdp_wrapped_module.", "base_layer.", "original_module.")


def check_shapes(expected: Shapes, found: Shapes, source: str) -> None:
    """Check that saved weights are exactly those of an adapter.

    Args:
        expected: Names and shapes of the adapter's weights in the model.
        found: Names and shapes of the saved weights.
        source: Where they were saved, for the message.

    Raises:
        ValueError: With the names of what is missing, unexpected or of another shape.

    Example:
        >>> check_shapes({"a": (1,), "b": (2,)}, {"b": (3,)}, "my-task")
        Traceback (most recent call last):
        ...
        ValueError: my-task does not hold this adapter's weights, nothing was loaded.
          missing (1): a
          of another shape (1): b, (3,) instead of (2,)
        Check that the adapter belongs to this backbone, and that the file is complete.
    """
    wrong = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name}, {found[name]} instead of {shape}"
            for name, shape in sorted(expected.items())
            if found.get(name, shape) != shape
        ],
    }
    lines = [
        f"\n  {what} ({len(names)}): {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
        for what, names in wrong.items()
        if names
    ]
    if lines:
        raise ValueError(
            f"{source} does not hold this adapter's weights, nothing was loaded.{''.join(lines)}\n"
            "Check that the adapter belongs to this backbone, and that the file is complete."
        )


def saved_shapes(folder: str) -> Shapes | None:
    """Read names and shapes of the weights in an adapter's folder, without the weights.

    Args:
        folder: A folder made by ``save_pretrained``.

    Returns:
        None if it is no folder on this machine.

    Raises:
        ValueError: If there is no file of weights in it, or if it is broken.
    """
    path = os.path.join(folder, SAFETENSORS_WEIGHTS_NAME)
    if os.path.isfile(path):
        try:
            with safe_open(path, framework="pt") as file:
                return {plain(name): tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is broken ({error}), nothing was loaded. Get the file again.") from error
    path = os.path.join(folder, WEIGHTS_NAME)
    if os.path.isfile(path):
        return shapes_of(torch.load(path, map_location="meta", weights_only=True))
    if os.path.isdir(folder):
        raise ValueError(
            f"{folder} has no {SAFETENSORS_WEIGHTS_NAME} in it, nothing was loaded. Get the file again; to start a "
            "fresh adapter from these options, pass dataclasses.replace(config, backbone_fingerprint=None)."
        )
    return None


def shapes_of(weights: Mapping[str, Tensor]) -> Shapes:
    """Return names, as they are saved but without PEFT's prefix, and shapes of weights."""
    return {plain(name): tuple(tensor.shape) for name, tensor in weights.items()}


def adapter_weights(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """Return an adapter's own tensors in a model, by the names under which :func:`saved_shapes` finds them in a file.

    Args:
        model: The model with its adapters.
        adapter_name: The adapter.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            containers = {"": module.modules_to_save}
        elif isinstance(module, AIMTunerLayer):
            containers = {f".{container}": getattr(module, container) for container in module.adapter_layer_names}
        else:
            continue
        for container, content in containers.items():
            if adapter_name in content:
                found |= {plain(f"{name}{container}{key}"): t for key, t in _tensors(content[adapter_name])}
    return found


def _tensors(content: nn.Parameter | nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over what a file holds of a parameter or a module."""
    if isinstance(content, nn.Parameter):
        yield "", content
        return
    for name, tensor in content.state_dict(keep_vars=True).items():
        yield f".{name}", tensor


def frozen_weights(model: nn.Module, adapter_name: str, weights: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Pick the backbone's weights that an adapter relies on: all but those of which it has its own.

    Args:
        model: The model with its adapters.
        adapter_name: The adapter.
        weights: The model's ``state_dict()``.
    """
    own = {name for name, module in model.named_modules() if _replaces(module, adapter_name)}
    picked = []
    for name, tensor in weights.items():
        added = ".aim_" in f".{name}" or ".modules_to_save." in name
        if not added and not any(name.startswith(f"{prefix}.") for prefix in own):
            picked.append((plain(name), tensor))
    return picked


def _replaces(module: nn.Module, adapter_name: str) -> bool:
    if isinstance(module, ModulesToSaveWrapper):
        return adapter_name in module.modules_to_save
    return isinstance(module, (AIMHead, AIMNorm)) and adapter_name in module.adapters


def in_precision(weights: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Return weights in a precision, "float16" say, and what is no number with a fraction as it is.

    Raises:
        ValueError: If one of them is too large for it.
    """
    cast = {name: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for name, t in weights.items()}
    lost = [name for name, tensor in cast.items() if (tensor.isfinite() != weights[name].isfinite()).any()]
    if lost:
        raise ValueError(
            f"save_dtype={dtype!r} cannot hold all of {', '.join(lost[:3])}, whose values reach up to "
            f"{max(weights[name].abs().max().item() for name in lost):.3g}. Use 'bfloat16', or None."
        )
    return cast


def plain(name: str) -> str:
    """Return a weight's name without what wrapping puts into it."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
