"""The weights of an adapter: their names and shapes in a model and in files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import suppress

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from peft_aim.config import broken
from peft_aim.layers import AIMTunerLayer, saved_name

Shapes = dict[str, tuple[int, ...]]

PLAIN: tuple[type, ...] = (Tensor, nn.Parameter)
SHARDED: tuple[type, ...] = ()
if torch.distributed.is_available():  # not in every build of PyTorch
    from torch.distributed.tensor import DTensor

    SHARDED = (DTensor,)

# Parts of parameter names that wrappers add: torch.compile and FSDP 1; also PEFT.
OF_TORCH = ("_orig_mod.", "_fsdp_wrapped_module.")
WRAPPERS = ("base_model.model.", *OF_TORCH, "base_layer.", "original_module.")


def check_shapes(expected: Shapes, found: Shapes, source: str) -> None:
    """Check that saved weights are exactly those of an adapter.

    Args:
        expected: Names and shapes of the adapter's weights in the model.
        found: Names and shapes of the saved weights.
        source: Where they were saved, for the error message.

    Raises:
        ValueError: If weights are missing, unexpected or of another shape, with their names.

    Example:
        >>> check_shapes({"a": (1,), "b": (2,)}, {"b": (3,)}, "my-task")
        Traceback (most recent call last):
        ...
        ValueError: my-task does not contain exactly this adapter's weights, so nothing was loaded.
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
    lines = in_lines(wrong)
    if lines:
        raise ValueError(
            f"{source} does not contain exactly this adapter's weights, so nothing was loaded.{lines}\n"
            "Check that the adapter belongs to this backbone, and that the file is complete."
        )


def in_lines(wrong: Mapping[str, list[str]], total: int | None = None) -> str:
    r"""Return a line for each fault, with the names of the weights that have it; "" if there are none.

    Example:
        >>> in_lines({"missing": ["a", "b"], "empty": []}, total=3)
        '\n  missing (2 of 3): a, b'
    """
    of = "" if total is None else f" of {total}"
    return "".join(
        f"\n  {what} ({len(names)}{of}): {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
        for what, names in wrong.items()
        if names
    )


def check_file(model: nn.Module, adapter_name: str, folder: str) -> None:
    """Check that the weights in a folder are exactly those of a new adapter, before they are read.

    Raises:
        ValueError: If they are not, or there are none.
    """
    expected = shapes_of(adapter_weights(model, adapter_name))
    found = own_shapes(model, saved_shapes(folder), expected)
    if sorted(expected.values()) != sorted(found.values()):  # names may still change, by key_mapping
        check_shapes(expected, found, folder)


def saved_shapes(folder: str) -> Shapes:
    """Read the names and shapes of the weights in an adapter's folder, without loading the weights.

    Args:
        folder: A folder written by ``save_pretrained``.

    Returns:
        Shapes by name.

    Raises:
        ValueError: If the folder contains no file of weights, or a broken one.
    """
    path = os.path.join(folder, SAFETENSORS_WEIGHTS_NAME)
    if os.path.isfile(path):
        try:
            with safe_open(path, framework="pt") as file:
                return {plain(name): tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(broken(path, error)) from error
    path = os.path.join(folder, WEIGHTS_NAME)
    if os.path.isfile(path):
        try:
            return shapes_of(torch.load(path, map_location="meta", weights_only=True))
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(broken(path, str(error).splitlines()[0])) from error
    raise ValueError(
        f"{folder} contains no {SAFETENSORS_WEIGHTS_NAME}, so nothing was loaded. Get the file again; to start a new "
        "adapter from these options, pass dataclasses.replace(config, backbone_fingerprint=None)."
    )


def shapes_of(weights: Mapping[str, Tensor]) -> Shapes:
    """Return the shapes of weights by name, as in a file but without PEFT's prefix."""
    return {plain(name): tuple(tensor.shape) for name, tensor in weights.items()}


def own_shapes(model: nn.Module, found: Shapes, expected: Shapes) -> Shapes:
    """Leave out the backbone's embeddings, which PEFT saves beside an adapter with ``save_embedding_layers=True``.

    Args:
        model: The adapted model.
        found: Names and shapes of saved weights.
        expected: Those of the adapter, among which embeddings may be (``modules_to_save``).

    Returns:
        The saved ones without embeddings of the backbone.
    """
    embeddings = []
    for get in (getattr(model, f"get_{side}_embeddings", None) for side in ("input", "output")):
        with suppress(NotImplementedError, AttributeError):  # as transformers answers for models without them
            embeddings.append(get() if get else None)
    names = tuple(f"{plain(name)}." for name, m in model.named_modules() if any(m is e for e in embeddings))
    return {name: shape for name, shape in found.items() if name in expected or not name.startswith(names)}


def adapter_weights(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """Return an adapter's own tensors in a model, by the names that :func:`saved_shapes` returns.

    Args:
        model: The adapted model.
        adapter_name: The adapter.
    """
    found = {}
    for name, container in containers_in(model):
        if adapter_name in container:
            name = name.removesuffix(".modules_to_save")
            found |= {plain(f"{name}.{key}"): tensor for key, tensor in tensors_of(container[adapter_name])}
    return found


def containers_in(model: nn.Module) -> Iterator[tuple[str, nn.ModuleDict]]:
    """Iterate over the containers that map names of adapters to weights, with the containers' own names."""
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            yield f"{name}.modules_to_save", module.modules_to_save
        elif isinstance(module, AIMTunerLayer):
            for container in module.adapter_layer_names:
                yield f"{name}.{container}", getattr(module, container)


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over what the state dict of a module has; of a sharded module, all processes would have to call that."""
    for name, part in module.named_modules():
        buffers = {key: buffer for key, buffer in part._buffers.items() if key not in part._non_persistent_buffers_set}
        for key, tensor in {**part._parameters, **buffers}.items():
            if hasattr(tensor, "_fqns"):  # the shards of all parameters together (FSDP 1)
                for own, shape in zip(tensor._fqns, tensor._shapes, strict=True):
                    yield f"{name}.{own}".lstrip("."), torch.empty(shape, device="meta")
            elif tensor is not None:
                yield f"{name}.{key}".lstrip("."), tensor


def check_complete(model: nn.Module, adapter_name: str, weights: Mapping[str, Tensor]) -> None:
    """Check that PEFT has left out the weights of other adapters only, not weights whose names contain an adapter's.

    Args:
        model: The adapted model.
        adapter_name: The adapter to save.
        weights: The weights that PEFT passes to a tuner.

    Raises:
        ValueError: If modules have the same name as another adapter.
    """
    held = dict(containers_in(model))
    by_adapter = {id(container) for container in held.values()}
    modules = [module for module in model.modules() if id(module) not in by_adapter]
    names = {name for module in modules for name in (*module._modules, *module._parameters, *module._buffers)}
    keys = [plain(key) for key in weights]
    parts = {part for key in weights for part in key.split(".")}
    for other in sorted(model.peft_config.keys() & names - {adapter_name}):
        foreign = tuple(f"{plain(name)}.{other}" for name, container in held.items() if other in container)
        if other not in parts or any(key.startswith(foreign) for key in keys):
            raise ValueError(
                f"{adapter_name!r} cannot be saved completely: another adapter is named {other!r}, as some modules "
                "are, and PEFT tells them apart by their names. Delete that adapter, or save it and load it under "
                f"another name, then save {adapter_name!r}."
            )


def check_not_quantized(adapter_name: str, weights: Mapping[str, Tensor]) -> None:
    """Check that the weights of an adapter are plain tensors: files cannot store a subclass, as quantization makes.

    Raises:
        ValueError: If they are not.
    """
    for name, tensor in weights.items():
        if type(tensor) not in PLAIN and not isinstance(tensor, SHARDED):
            kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
            raise ValueError(
                f"The adapter {adapter_name!r} cannot be saved: {plain(name)} is no plain tensor but a {kind}. If "
                "quantize_() made it, save before that, or quantize the backbone alone, by "
                'filter_fn=lambda module, name: isinstance(module, nn.Linear) and "aim_" not in name; otherwise '
                "replace it by a plain tensor."
            )


def in_precision(weights: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Cast floating-point weights to a dtype, such as "float16"; other tensors stay as they are.

    Raises:
        ValueError: If a value is too large for the dtype.
    """
    cast = {name: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for name, t in weights.items()}
    lost = [name for name, tensor in cast.items() if (tensor.isfinite() != weights[name].isfinite()).any()]
    if lost:
        raise ValueError(
            f"save_dtype={dtype!r} cannot hold all of {', '.join(lost[:3])}, whose values reach up to "
            f"{max(weights[name].abs().max().item() for name in lost):.3g}. Use 'bfloat16' or None."
        )
    return cast


def unwrapped(name: str) -> str:
    """Return a name in a model of which no part is compiled or sharded.

    Example:
        >>> unwrapped("_orig_mod.blocks.0._fsdp_wrapped_module.attn.weight")
        'blocks.0.attn.weight'
    """
    return ".".join(part for part in name.split(".") if f"{part}." not in OF_TORCH)


def plain(name: str) -> str:
    """Return a weight's name as in files, without the parts that wrappers add."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return saved_name(name)
