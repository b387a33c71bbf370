"""Runs an image model on one random image, and records the inputs and outputs of some of its modules."""

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
    """The tensors observed in a run.

    Attributes:
        image: The image (1, C, H, W).
        output: The output of the model.
        given: First arguments of the recorded modules, by name.
        returned: First tensors of their outputs, by name.
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
        model: A model that takes only images.
        found: Its structure.
        names: Names of modules to record in addition to the blocks and the head.

    Raises:
        ValueError: If it has no weights and so cannot be run.
    """
    check_has_weights(model)
    images = drawn(next(blank_images(model)))
    images = {name: argument[:1] for name, argument in images.items()}
    observed = Observed(next(iter(images.values())))
    first = next(iter(found.blocks))
    recorded = dict.fromkeys([*found.blocks, *names, *filter(None, [found.head])])
    outside = {name: p for name, p in model.named_parameters() if not within(name, found.blocks)}
    handles = [h for name in recorded for h in _recorders(model.get_submodule(name), name, observed)]
    handles.append(model.get_submodule(first).register_forward_pre_hook(_cut_graph, with_kwargs=True))
    try:
        with running(model, training=False), torch.enable_grad(), _requiring_grad(model, outside):
            observed.output = run(model, images)
            observed.entering = _depends_on(observed.given[first], outside)
    finally:
        for handle in handles:
            handle.remove()
    for record in (observed.given, observed.returned):
        record.update({name: tensor.detach() for name, tensor in record.items()})
    return observed


def check_has_weights(model: nn.Module) -> None:
    """Check that a model is not on "meta".

    Raises:
        ValueError: If it is.
    """
    if any(tensor.device.type == "meta" for tensor in model.parameters()):
        raise ValueError(
            f"This {type(model).__name__} is on the device 'meta', without weights, so it cannot be compared or run. "
            "Load its pretrained weights first."
        )


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the root mean square of a difference relative to that of the larger tensor; infinity if shapes differ.

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


def _recorders(module: nn.Module, name: str, observed: Observed) -> list[Any]:
    argument = first_parameter(module)

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        observed.given[name] = first_argument(argument, args, kwargs)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        observed.returned[name] = first_tensor(output)

    return [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]


def _cut_graph(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Stop recording gradients at the first block: after it they take memory, but are not needed."""
    argument = first_parameter(module)
    return with_first_argument(first_argument(argument, args, kwargs).detach(), argument, args, kwargs)


@contextmanager
def _requiring_grad(model: nn.Module, wanted: Iterable[str]) -> Iterator[None]:
    """Require gradients for the given parameters of a model only, and restore the setting afterwards."""
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
