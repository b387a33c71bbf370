"""Selects an adapter's weights from a state dict, and checks that all of them are there before anything is written."""

from __future__ import annotations

from collections.abc import Mapping

from peft import PeftModel
from torch import Tensor, distributed, nn

from peft_aim.saving.weights import (
    check_complete,
    check_not_quantized,
    containers_in,
    in_lines,
    plain,
    tensors_of,
    unwrapped,
)


def select_weights(model: nn.Module, adapter_name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select an adapter's weights from a state dict, which may name them as in the model without its wrappers.

    Args:
        model: The adapted model; parts of it may be compiled or sharded (FSDP 1), which changes their names.
        adapter_name: The adapter to save.
        weights: The state dict.

    Returns:
        The weights in the tuner layers, without PEFT's ``modules_to_save``, by their names without wrappers.

    Raises:
        ValueError: If weights are missing, empty, quantized or of another shape, or if modules have the name of
            another adapter.
    """
    if not weights and _is_another_process():
        return {}
    check_complete(model, adapter_name, weights)
    found = {unwrapped(name): tensor for name, tensor in weights.items()}
    if isinstance(model, PeftModel):
        found = {_of_peft_model(name): tensor for name, tensor in found.items()}
    _check_all_are_there(model, adapter_name, found)
    held = [unwrapped(name) for name, _ in containers_in(model) if not name.endswith(".modules_to_save")]
    own = tuple(f"{name}." for name in held)
    bare = tuple(name for name in held if name.endswith("embedding"))
    selected = {name: tensor for name, tensor in found.items() if name.startswith(own) or name in bare}
    check_not_quantized(adapter_name, selected)
    return selected


def _of_peft_model(name: str) -> str:
    """Return a weight's name in a PeftModel, given that or the one in its base model."""
    return name if name.startswith("base_model.") else f"base_model.model.{name}"


def _is_another_process() -> bool:
    """Whether this is not the first process, the only one that gets the state dict of a sharded model."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0


def _check_all_are_there(model: nn.Module, adapter_name: str, found: Mapping[str, Tensor]) -> None:
    expected, given = {}, {}
    named = {plain(name): tensor for name, tensor in found.items() if ".original_module." not in name}
    for name, container in containers_in(model):
        for key, tensor in tensors_of(container[adapter_name]) if adapter_name in container else ():
            in_file = plain(f"{name.removesuffix('.modules_to_save')}.{key}")
            in_model = plain(f"{name}.{adapter_name}.{key}")
            expected[in_file] = tensor
            if in_file in named or in_model in named:
                given[in_file] = named.get(in_file, named.get(in_model))
    wrong = {
        "missing": [name for name in expected if name not in given],
        "without content": [n for n in expected if n in given and (given[n].is_meta or not given[n].numel())],
        # In the model itself, FSDP 1 flattens its shards.
        "of another shape": [n for n, t in expected.items() if t.ndim > 1 and given.get(n, t).shape != t.shape],
    }
    lines = in_lines(wrong, len(expected))
    if lines:
        raise ValueError(
            f"The state dict does not have all weights of the adapter {adapter_name!r}, so nothing was saved."
            f"{lines}\nPass the whole model's: if it is sharded, accelerator.get_state_dict(model), which "
            "all processes call; if it is offloaded, accelerate.utils.modeling.get_state_dict_offloaded_model(model)."
        )
