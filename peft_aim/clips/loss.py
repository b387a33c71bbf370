"""The loss per clip: labels are withheld from the model, and compared with the scores averaged over frames."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Labels:
    """The arguments of a call that concern the loss.

    Attributes:
        labels: Labels (B,), None if there are none.
        options: Other arguments that the model would pass to its loss function.
    """

    labels: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)


def take_labels(names: list[str], clips: int, args: tuple, kwargs: dict[str, Any]) -> tuple[Labels, tuple, dict]:
    """Remove the labels from the arguments of a call.

    Args:
        names: Names of the model's parameters, in order.
        clips: Number of clips B.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        The labels, and the positional and keyword arguments without them.

    Raises:
        ValueError: If there is not one label per clip.

    Example:
        >>> take_labels(["x", "labels"], 2, (1,), {"labels": [0, 1]})
        (Labels(labels=[0, 1], options={}), (1,), {})
    """
    if "labels" not in names:
        return Labels(), args, kwargs
    position = names.index("labels")
    if len(args) > position:
        labels = args[position]
        args = (*args[:position], None, *args[position + 1 :])
    else:
        labels = kwargs.get("labels")
        kwargs = {name: value for name, value in kwargs.items() if name != "labels"}
    if labels is not None and len(labels) != clips:
        raise ValueError(f"Got {len(labels)} labels for {clips} clips. Give one label per clip.")
    options = {name: value for name, value in kwargs.items() if name not in names}
    return Labels(labels, options), args, kwargs


def add_loss(model: nn.Module, head: str | None, given: Labels, output: Any) -> Any:
    """Add the loss to the output of a model, computed by the model's own loss function on the scores per clip.

    Args:
        model: A transformers model.
        head: Name of its classification head, None if it has none.
        given: The labels.
        output: The model's output, with scores ``(B, classes)`` per clip.

    Raises:
        ValueError: If the output contains no class scores.
    """
    scores = output[0] if isinstance(output, (tuple, list)) else output["logits"]
    if scores.ndim != 2:
        raise ValueError(
            f"labels= is for models that return class scores (B, classes), but {type(model).__name__} returned a "
            f"tensor {tuple(scores.shape)}. Leave labels out, and compute the loss from the output."
        )
    config = copy.copy(model.config)
    if head and getattr(model.get_submodule(head), "current", None) is not None:  # the adapter has its own classes
        config.num_labels, config.problem_type = scores.shape[-1], None
    loss = model.loss_function(given.labels, scores, config, **given.options)
    if isinstance(output, (tuple, list)):
        return type(output)((loss, *output))
    return type(output)(**{**output, "loss": loss})
