"""Leaves a model that somebody else wrote as it was before it ran."""

from __future__ import annotations

import copy
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.tracing.switches import calling_all_modules

CONTAINERS = (dict, OrderedDict, defaultdict, Counter, set, list, deque)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore what a model may change when it runs, and the state of the random number generators.

    That is the attributes of all modules, their buffers, and what is in the tensors and containers among them.

    Example:
        >>> model = nn.Identity()
        >>> model.seen = []
        >>> with unchanged(model):
        ...     model.seen.append(1)
        ...     model.last = 1
        >>> model.seen, hasattr(model, "last")
        ([], False)
    """
    attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
    noted = _Contents()
    for _, before in attributes:
        noted.note(before)
    numpy = sys.modules.get("numpy")  # which a model may draw from, but AIM does not need
    drawn = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng([p.device for p in model.parameters() if p.is_cuda][:1]):
            yield
    finally:
        random.setstate(drawn[0])
        if numpy is not None:
            numpy.random.set_state(drawn[1])
        for now, before in attributes:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)
        noted.restore()


class _Contents:
    """What is in containers and tensors, however deep."""

    def __init__(self) -> None:
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}

    def note(self, value: Any) -> None:
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self._tensors.setdefault(id(value), (value, value.detach().clone()))
        elif type(value) in CONTAINERS and id(value) not in self._containers:
            self._containers[id(value)] = value, copy.copy(value)
            for item in value.values() if isinstance(value, dict) else value:
                self.note(item)

    @torch.inference_mode()  # in which tensors that were made there can be changed as well
    def restore(self) -> None:
        for container, content in self._containers.values():
            if _ids(container) != _ids(content):  # in use elsewhere, perhaps
                container.clear()
                getattr(container, "update", getattr(container, "extend", None))(content)
        for tensor, content in self._tensors.values():
            if not tensor.is_meta and not torch.equal(tensor, content):  # a graph may have saved those that are equal
                tensor.copy_(content)


def _ids(container: Any) -> list[int]:
    return [*map(id, chain.from_iterable(container.items()) if isinstance(container, dict) else container)]


@contextmanager
def running(model: nn.Module, training: bool) -> Iterator[None]:
    """Set a model to training or evaluation mode and freeze it, and restore every module and parameter afterwards.

    Running statistics stay as they are and gradient checkpointing stays off, in training mode too, and so do compiled
    code and the fast path of torch's own transformer layers, which do not call all modules.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for module, _ in modes:
        changes = hasattr(module, "running_mean") or getattr(module, "gradient_checkpointing", False)
        module.training = training and not changes
    for parameter in trained:  # torch's counters stumble over their views under no_grad
        parameter.requires_grad_(False)
    try:
        with calling_all_modules:
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()
        for module, _ in modes:
            if type(module).train is not nn.Module.train:  # clears a bias cached for evaluation (LeViT)
                module.train()
        for module, mode in modes:
            module.training = mode
