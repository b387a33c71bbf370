"""What a saved adapter must hold to be loaded, and what it says of the backbone it was trained on."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from peft_aim.head import AIMHead
from peft_aim.norm import AIMNorm

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
                return {_plain(name): tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
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
    return {_plain(name): tuple(tensor.shape) for name, tensor in weights.items()}


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
            picked.append((_plain(name), tensor))
    return picked


def _replaces(module: nn.Module, adapter_name: str) -> bool:
    if isinstance(module, ModulesToSaveWrapper):
        return adapter_name in module.modules_to_save
    return isinstance(module, (AIMHead, AIMNorm)) and adapter_name in module.adapters


def _plain(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
