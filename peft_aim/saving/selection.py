"""Selects an adapter's weights from a state dict, and checks that all of them are there before anything is written."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, distributed, nn

from peft_aim.layers import saved_name
from peft_aim.saving.weights import check_complete, containers_in, plain, tensors_of, unwrapped


def select_weights(model: nn.Module, adapter_name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select an adapter's weights from a state dict, which may name them as in the model without its wrappers.

    Args:
        model: The adapted model; parts of it may be compiled or sharded (FSDP 1), which changes their names.
        adapter_name: The adapter to save.
        weights: The state dict.

    Returns:
        The weights in the tuner layers, without PEFT's ``modules_to_save``, by their names without wrappers.

    Raises:
        ValueError: If weights are missing, empty, or of another shape, or if modules have the name of another adapter.
    """
    if not weights and _is_another_process():
        return {}
    check_complete(model, adapter_name, weights)
    found = {unwrapped(name): tensor for name, tensor in weights.items()}
    _check_all_are_there(model, adapter_name, found)
    own = tuple(f"{unwrapped(name)}." for name, _ in containers_in(model, tuner_layers_only=True))
    bare = tuple(name.removesuffix(".") for name in own if name.endswith("embedding."))
    return {name: tensor for name, tensor in found.items() if name.startswith(own) or name in bare}


def _is_another_process() -> bool:
    """Whether this is not the first process, the only one that gets the state dict of a sharded model."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0


def _check_all_are_there(model: nn.Module, adapter_name: str, found: Mapping[str, Tensor]) -> None:
    wrong: dict[str, list[str]] = {"missing": [], "without content": [], "of another shape": []}
    count = 0
    for container, content in ((name, c[adapter_name]) for name, c in containers_in(model) if adapter_name in c):
        for key, tensor in tensors_of(content):
            count += 1
            whole, bare = f"{unwrapped(container)}.{adapter_name}.{key}", unwrapped(f"{container}.{key}")
            given = next((found[name] for name in (whole, bare, saved_name(bare)) if name in found), None)
            if given is None:
                what = "missing"
            elif given.is_meta or not given.numel():
                what = "without content"
            elif tensor.ndim > 1 and given.shape != tensor.shape:  # in the model itself, FSDP 1 flattens its shards
                what = "of another shape"
            else:
                continue
            wrong[what].append(plain(f"{container.removesuffix('.modules_to_save')}.{key}"))
    lines = [
        f"\n  {what} ({len(names)} of {count}): {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
        for what, names in wrong.items()
        if names
    ]
    if lines:
        raise ValueError(
            f"The state dict does not have all weights of the adapter {adapter_name!r}, so nothing was saved."
            f"{''.join(lines)}\nPass the whole model's: if it is sharded, accelerator.get_state_dict(model), which "
            "all processes call; if it is offloaded, accelerate.utils.modeling.get_state_dict_offloaded_model(model)."
        )
