"""The loss per clip: labels are withheld from the model, and compared with the scores averaged over frames."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from peft_aim.config import PROBLEM_TYPES


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
        ValueError: If the output contains no class scores, or if the labels do not fit the problem type.
    """
    scores = output[0] if isinstance(output, (tuple, list)) else output["logits"]
    if scores.ndim != 2:
        raise ValueError(
            f"labels= is for models that return class scores (B, classes), but {type(model).__name__} returned a "
            f"tensor {tuple(scores.shape)}. Leave labels out, and compute the loss from the output."
        )
    config = copy.copy(model.config)  # transformers stores the problem type that it infers
    own = model.get_submodule(head) if head else None
    if getattr(own, "current", None) is not None:  # the adapter has its own classes
        config.num_labels, config.problem_type = scores.shape[-1], own.problem_type or config.problem_type
    if model.loss_function is ForSequenceClassificationLoss:  # not one of the user's
        check_labels(config.problem_type, given.labels, scores)
    loss = model.loss_function(given.labels, scores, config, **given.options)
    if isinstance(output, (tuple, list)):
        return type(output)((loss, *output))
    return type(output)(**{**output, "loss": loss})


def check_labels(problem_type: str | None, labels: Tensor, scores: Tensor) -> None:
    """Check that labels have the shape and dtype of their problem type, so that nothing is broadcast.

    Args:
        problem_type: As in transformers' configs; None infers it as transformers does.
        labels: The labels.
        scores: The scores, ``(B, C)``.

    Shape:
        "regression": numbers ``(B, C)``, for C = 1 also ``(B,)``. "single_label_classification": class indices
        ``(B,)`` or ``(B, 1)``. "multi_label_classification": 0.0 or 1.0 for each class, ``(B, C)``.

    Raises:
        ValueError: If they do not, with shapes and dtypes.

    Example:
        >>> check_labels("single_label_classification", torch.tensor([2, 0]), torch.zeros(2, 3))
        >>> check_labels("regression", torch.tensor([0.5, 1.5]), torch.zeros(2, 3))
        Traceback (most recent call last):
        ...
        ValueError: problem_type='regression' with 3 outputs needs labels (2, 3) of any number type, but got (2,) of \
torch.float32. Pass labels in that form, or change problem_type in AIMConfig, or in model.config if it has none there.
    """
    (clips, outputs), classes = scores.shape, labels.dtype in (torch.int64, torch.int32)
    many = f"{outputs} output{'s' if outputs > 1 else ''}"
    kind, source = problem_type, f"problem_type={problem_type!r}"
    if kind is None:
        whole = "single_label_classification" if classes else "multi_label_classification"
        kind = "regression" if outputs == 1 else whole
        source = f"No problem_type is set, so labels of {labels.dtype} mean {kind!r}, which"
    if kind == "single_label_classification":
        shapes, dtypes, fits = [(clips,), (clips, 1)], "torch.int64", labels.dtype in (torch.int64, torch.uint8)
        if outputs == 1:
            raise ValueError(
                f"{source} with {many} has a loss of zero whatever the label. Use 2 outputs, or "
                "'multi_label_classification' with labels (B, 1) of 0.0 or 1.0."
            )
    elif kind == "multi_label_classification":
        shapes, dtypes, fits = [(clips, outputs)], "a float type, 0.0 or 1.0 each", labels.is_floating_point()
    elif kind == "regression":
        shapes = [(clips, outputs), (clips,)] if outputs == 1 else [(clips, outputs)]
        dtypes, fits = "any number type", labels.dtype != torch.bool
    else:
        raise ValueError(f"{source} is not one of {', '.join(map(repr, PROBLEM_TYPES))}. Set it to one of them.")
    if tuple(labels.shape) not in shapes or not fits:
        raise ValueError(
            f"{source} with {many} needs labels {' or '.join(map(str, shapes))} of {dtypes}, but got "
            f"{tuple(labels.shape)} of {labels.dtype}. Pass labels in that form, or change problem_type in AIMConfig, "
            "or in model.config if it has none there."
        )
