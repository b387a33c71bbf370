"""Records which module a model calls, on what, and within which other, during one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from peft_aim.tracing.outputs import Images, first_parameter, first_tensor, named_arguments, run
from peft_aim.tracing.parts import is_norm


@dataclass(frozen=True)
class Handle:
    """Tells whether two calls saw the same tensor, up to its shape, without keeping its memory."""

    storage: StorageWeakRef  # as long as the reference lives, no other storage gets its address
    offset: int
    numel: int
    shape: tuple[int, ...] = field(compare=False)

    @classmethod
    def of(cls, value: Any) -> Handle | None:
        """Return the handle of a tensor, or of the one that a tuple starts with; None where there is none."""
        tensor = first_tensor(value)
        if not isinstance(tensor, Tensor):
            return None
        storage = StorageWeakRef(tensor.untyped_storage())
        return cls(storage, tensor.storage_offset(), tensor.numel(), tuple(tensor.shape))


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        name: Name of the module in the model, "" for the model itself.
        module: The module.
        given: Its first argument.
        arguments: Its other arguments, by name.
        children: Calls made while it ran, by the module itself.
        returned: What it returned, or the first of it.
    """

    name: str
    module: nn.Module
    given: Handle | None
    arguments: dict[str, Any]
    children: list[Call] = field(default_factory=list)
    returned: Handle | None = None

    @property
    def parts(self) -> list[Call]:
        """Calls made by the module itself, or by a ``Sequential`` of a norm and what follows it in its stead."""
        return [part for child in self.children for part in (child.children if child.is_branch else [child])]

    @property
    def is_branch(self) -> bool:
        """Whether it is a ``Sequential`` that starts with a norm."""
        return isinstance(self.module, nn.Sequential) and bool(self.children) and is_norm(self.children[0].module)

    def walk(self) -> Iterator[Call]:
        """Iterate over this call and all below it, in the order in which they began."""
        yield self
        for child in self.children:
            yield from child.walk()


@torch.no_grad()
def trace(model: nn.Module, images: Images, training: bool = False) -> tuple[Call, Any]:
    """Run a model once and record the tree of its calls.

    Args:
        model: The model.
        images: What it takes.
        training: Whether it runs as in training.

    Returns:
        The call of the model itself, and what it returned.

    Example:
        >>> call, _ = trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), {"input": torch.zeros(1, 1, 2, 2)})
        >>> [(child.name, child.returned.shape) for child in call.children]
        [('0', (1, 4)), ('1', (1, 2))]
    """
    recorder = _Recorder()
    with running(model, training), recorder.attached(model):
        output = run(model, images)
    return recorder.root, output


class _Recorder:
    """Builds the tree of calls from hooks on every module."""

    def __init__(self) -> None:
        self.root: Call | None = None
        self._running: list[Call] = []

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        handles = []
        for name, module in model.named_modules():
            enter, leave = self._hooks(name)
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, name: str) -> tuple:
        def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            first, others = first_parameter(module), named_arguments(module, args, kwargs)
            given = args[0] if args else kwargs.get(first)
            call = Call(name, module, Handle.of(given), {k: value for k, value in others.items() if k != first})
            if self._running:
                self._running[-1].children.append(call)
            else:
                self.root = call
            self._running.append(call)

        def leave(module: nn.Module, args: tuple, output: Any) -> None:
            self._running.pop().returned = Handle.of(output)

        return enter, leave


@contextmanager
def running(model: nn.Module, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode, and every module back into its own mode afterwards.

    In training, too, running statistics stay as they are, and nothing is checkpointed.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        changes = hasattr(module, "running_mean") or getattr(module, "gradient_checkpointing", False)
        module.training = training and not changes
    try:
        with torch.compiler.set_stance("force_eager"):  # hooks are to run, not to be compiled
            yield
    finally:
        for module, _ in modes:
            if type(module).train is not nn.Module.train:  # it forgets a bias cached for evaluation (LeViT)
                module.train()
        for module, mode in modes:
            module.training = mode
