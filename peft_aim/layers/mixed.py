"""Mixed batches: each clip of a batch runs with an adapter of its own, as PEFT's ``adapter_names`` asks for.

The clips of one adapter are one call of the model. To run the frozen backbone once, on all clips, would need as much
arithmetic, and could not give the same scores bit for bit: matrix products of another size are rounded otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from peft_aim.clips import Clips, has_checkpoints, join_rows, rows_by_name, select_rows
from peft_aim.layers.base import AIMTunerLayer

BASE = "__base__"  # PEFT's name for the backbone without adapters


def with_adapter_names(forward: Callable) -> Callable:
    """Extend ``PeftModel.forward``, which leaves ``adapter_names`` to tuners that can only change arguments."""

    @wraps(forward)
    def run(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        clips = getattr(self.get_base_model(), "aim_clips", None)
        if clips is None or kwargs.get("adapter_names") is None:
            return forward(self, *args, **kwargs)
        return run_mixed(self, clips, kwargs.pop("adapter_names"), args, kwargs)

    return run


def run_mixed(model: PeftModel, clips: Clips, names: Sequence[str], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Call a model on a batch whose clips have adapters of their own.

    Args:
        model: The model, in evaluation mode.
        clips: The hooks around its backbone.
        names: Name of an adapter for each clip, "__base__" for none.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.

    Returns:
        What the model returns for clips of one adapter. If the heads have different numbers of classes, scores are
        padded with minus infinity.

    Raises:
        ValueError: If there is not one name per clip, there is no adapter of some name, the model is in training mode,
            labels are given, or gradients are recorded although something is recomputed in backward.
    """
    shape = clips.shape_of(args, kwargs)
    _check(model, names, shape[0], kwargs)
    _check_not_recomputed(model, names)
    base, outputs, rows = model.get_base_model(), [], rows_by_name(names) or {BASE: []}
    with clips.turns.switching():
        for name, some in rows.items():
            chosen = [select_rows(value, some, *shape) for value in args]
            further = {key: select_rows(value, some, *shape) for key, value in kwargs.items()}
            with _running(base, name):
                outputs.append(base(*chosen, **further))
    return join_rows(outputs, list(rows.values()))


def _check(model: PeftModel, names: Sequence[str], clips: int, kwargs: dict[str, Any]) -> None:
    if model.training:
        raise ValueError(
            "Cannot pass adapter_names when the model is in training mode. Call model.eval(), or train one adapter at "
            "a time."
        )
    if isinstance(names, str) or len(names) != clips or not all(isinstance(name, str) for name in names):
        raise ValueError(f"Got adapter_names={names!r} for {clips} clips. Give a list of one name per clip.")
    unknown = sorted(set(names) - {*model.peft_config, BASE})
    if unknown:
        raise ValueError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}. Use {', '.join(model.peft_config)}, "
            f"or {BASE} for the backbone without adapters."
        )
    if isinstance(kwargs.get("labels"), Tensor):
        raise ValueError(
            "Got labels together with adapter_names, but adapters may differ in what labels mean. Leave labels out, "
            "and compute each adapter's loss from its scores."
        )


def _check_not_recomputed(model: PeftModel, names: Sequence[str]) -> None:
    """Check that nothing runs again in backward, when another adapter would be active."""
    if not torch.is_grad_enabled():
        return
    settings = {model.peft_config[name].recompute for name in names if name != BASE} - {"nothing"}
    if settings or has_checkpoints(model):
        what = f"recompute={min(settings)!r}" if settings else "gradient checkpointing"
        raise ValueError(
            f"adapter_names cannot be used with {what} while gradients are recorded: blocks would run again in "
            "backward with another adapter. Call the model under torch.no_grad(), or once per adapter."
        )


@contextmanager
def _running(model: nn.Module, adapter: str) -> Iterator[None]:
    """Run one adapter in all layers; unlike ``set_adapter``, this leaves alone what requires gradients."""
    layers = [m for m in model.modules() if isinstance(m, (AIMTunerLayer, AuxiliaryTrainingWrapper))]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer in layers:
            layer._active_adapter = [adapter]
            layer._disable_adapters |= adapter not in layer._get_available_adapters()
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled
