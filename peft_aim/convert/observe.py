"""Runs an image model on one random image and records what enters and leaves some of its modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.backbone import Inspection, within
from peft_aim.tracing import (
    blank_images,
    drawn,
    first_argument,
    first_parameter,
    first_tensor,
    run,
    running,
    with_first_argument,
)


@dataclass
class Observed:
    """What was seen in a run.

    Attributes:
        image: The image (1, C, H, W).
        output: What the model returned.
        given: First arguments, by the name of the module.
        returned: First tensors of what they returned.
        entering: Names of the parameters outside of blocks that the tokens entering the first block depend on.
    """

    image: Tensor
    output: Any = None
    given: dict[str, Tensor] = field(default_factory=dict)
    returned: dict[str, Tensor] = field(default_factory=dict)
    entering: list[str] = field(default_factory=list)


def observe(model: nn.Module, found: Inspection, names: Iterable[str] = ()) -> Observed:
    """Run a model on a random image.

    Args:
        model: A model that takes images alone.
        found: What it is made of.
        names: Modules to record, besides blocks and head.

    Raises:
        ValueError: If it has no weights, so that it cannot be run.
    """
    check_has_weights(model)
    images = drawn(next(blank_images(model)))
    images = {name: argument[:1] for name, argument in images.items()}
    seen = Observed(next(iter(images.values())))
    first = next(iter(found.blocks))
    recorded = dict.fromkeys([*found.blocks, *names, *filter(None, [found.head])])
    outside = {name: p for name, p in model.named_parameters() if not within(name, found.blocks)}
    handles = [h for name in recorded for h in _recorders(model.get_submodule(name), name, seen)]
    handles.append(model.get_submodule(first).register_forward_pre_hook(_cut_graph, with_kwargs=True))
    try:
        with running(model, training=False), torch.enable_grad(), _requiring_grad(model, outside):
            seen.output = run(model, images)
            seen.entering = _depends_on(seen.given[first], outside)
    finally:
        for handle in handles:
            handle.remove()
    for record in (seen.given, seen.returned):
        record.update({name: tensor.detach() for name, tensor in record.items()})
    return seen


def check_has_weights(model: nn.Module) -> None:
    """Check that a model is not on "meta".

    Raises:
        ValueError: If it is.
    """
    if any(tensor.device.type == "meta" for tensor in model.parameters()):
        raise ValueError(
            f"This {type(model).__name__} is on the device 'meta', without weights, so it can be neither compared nor "
            "run. Load its pretrained weights first."
        )


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the root mean square of a difference, relative to that of the larger tensor; infinity if shapes differ.

    Example:
        >>> relative_difference(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0]))
        0.6
        >>> relative_difference(torch.zeros(2), torch.zeros(2))
        0.0
    """
    if found.shape != expected.shape:
        return float("inf")
    dtype = torch.float32 if found.numel() > 1e5 else torch.float64
    x, y = (tensor.detach().to("cpu", dtype).flatten() for tensor in (found, expected))
    size = max(float(x.norm()), float(y.norm()))
    return float((x - y).norm()) / size if size else 0.0


def _recorders(module: nn.Module, name: str, seen: Observed) -> list[Any]:
    argument = first_parameter(module)

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.given[name] = first_argument(argument, args, kwargs)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        seen.returned[name] = first_tensor(output)

    return [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]


def _cut_graph(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Record no gradients from the first block on, which would take memory and tell nothing."""
    argument = first_parameter(module)
    return with_first_argument(first_argument(argument, args, kwargs).detach(), argument, args, kwargs)


@contextmanager
def _requiring_grad(model: nn.Module, wanted: Iterable[str]) -> Iterator[None]:
    """Let some parameters of a model, and only these, ask for gradients."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted and parameter.is_floating_point())
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def _depends_on(tokens: Tensor, parameters: dict[str, nn.Parameter]) -> list[str]:
    names = [name for name, parameter in parameters.items() if parameter.requires_grad]
    if not tokens.requires_grad:
        return []
    gradients = torch.autograd.grad(tokens.sum(), [parameters[name] for name in names], allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]
