"""Records the tree of module calls of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from peft_aim.tracing.copies import trait, traits_of_all
from peft_aim.tracing.outputs import (
    Images,
    first_argument,
    first_parameter,
    first_tensor,
    named_arguments,
    replace_first,
    run,
    tokens_given,
    with_first_argument,
)
from peft_aim.tracing.parts import is_norm
from peft_aim.tracing.restored import running
from peft_aim.tracing.stand_ins import standing_in


@dataclass(frozen=True)
class Handle:
    """Identifies a tensor, up to its shape, without holding its memory."""

    storage: StorageWeakRef  # while this reference lives, no other storage gets its address
    offset: int
    numel: int
    shape: tuple[int, ...] = field(compare=False)
    dtype: torch.dtype = field(compare=False)
    device: torch.device = field(compare=False)

    @classmethod
    def of(cls, value: Any) -> Handle | None:
        """Return the handle of an output's first tensor, None if it has none."""
        tensor = first_tensor(value)
        if not isinstance(tensor, Tensor):
            return None
        storage = StorageWeakRef(tensor.untyped_storage())
        span = (storage, tensor.storage_offset(), tensor.numel())
        return cls(*span, tuple(tensor.shape), tensor.dtype, tensor.device)

    def zeros(self) -> Tensor:
        """Return zeros of its shape, dtype and device, in the default memory format."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        name: Name of the module in the model, "" for the model itself.
        module: The module.
        given: The first argument.
        arguments: The other arguments, by name.
        args: The positional arguments. The first tensor, here or in ``kwargs``, is replaced by None.
        kwargs: The keyword arguments.
        children: The calls that the module made itself.
        returned: The first tensor of the output.
        form: The output with its first tensor replaced by None.
        copy_of: The call that stands for this one, if the module is a copy and did not run.
    """

    name: str
    module: nn.Module
    given: Handle | None
    arguments: dict[str, Any]
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    children: list[Call] = field(default_factory=list)
    returned: Handle | None = None
    form: Any = None
    copy_of: Call | None = None

    @classmethod
    def begun(cls, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Call:
        """Record the start of a call."""
        first = first_parameter(module)
        given = first_argument(first, args, kwargs)
        others = {key: value for key, value in named_arguments(module, args, kwargs).items() if key != first}
        tokens = Handle.of(given)
        if tokens is not None:  # not a shape, for instance
            args, kwargs = with_first_argument(replace_first(given, None), first, args, kwargs)
        return cls(name, module, tokens, others, args, kwargs)

    @property
    def original(self) -> Call:
        """The call itself, or the one that stands for it."""
        return self.copy_of or self

    @property
    def parts(self) -> list[Call]:
        """The calls that the module made itself; a ``Sequential`` that starts with a norm counts as its contents."""
        return [part for child in self.children for part in (child.children if child.is_branch else [child])]

    @property
    def is_branch(self) -> bool:
        """Whether it is a ``Sequential`` that starts with a norm."""
        return isinstance(self.module, nn.Sequential) and bool(self.children) and is_norm(self.children[0].module)

    @property
    def takes_tensor(self) -> bool:
        """Whether its first argument is a tensor, not a list of tensors for example."""
        return first_argument(first_parameter(self.module), self.args, self.kwargs) is None and self.given is not None

    def walk(self) -> Iterator[Call]:
        """Iterate over this call and all calls below it, in the order in which they started."""
        yield self
        for child in self.children:
            yield from child.walk()

    def again(self, tokens: Tensor) -> Any:
        """Call the module again, on other tokens but with the same other arguments."""
        first = first_parameter(self.module)
        given = replace_first(first_argument(first, self.args, self.kwargs), tokens)
        args, kwargs = with_first_argument(given, first, self.args, self.kwargs)
        return self.module(*args, **kwargs)

    def is_like(self, other: Call) -> bool:
        """Whether two calls of copies have the same shapes and equal other arguments."""
        return self._way() == other._way()

    def _way(self) -> Hashable:
        def way(value: Any) -> Hashable:
            if isinstance(value, Tensor):
                return tuple(value.shape), value.dtype, Handle.of(value) == self.given
            return tuple(map(way, value)) if isinstance(value, (list, tuple)) else trait(value)

        arguments = tuple((name, way(value)) for name, value in self.arguments.items())
        return self.given and (self.given.shape, self.given.dtype), len(self.args), arguments


@torch.no_grad()
def trace(model: nn.Module, images: Images, once: Callable[[Call], bool] = lambda call: False) -> tuple[Call, Any]:
    """Run a model once, in evaluation mode, and record the tree of its calls.

    Args:
        model: The model.
        images: What it takes.
        once: Returns True for calls whose copies need not run: modules with the same :func:`traits
            <peft_aim.tracing.copies.traits>` before the run, that are called alike. A copy returns its input instead,
            so the call must preserve the shape of its input. The calls below a copy are recorded as if they had been
            made.

    Returns:
        The call of the model itself, and its output.

    Example:
        >>> call, _ = trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), {"input": torch.zeros(1, 1, 2, 2)})
        >>> [(child.name, child.returned.shape) for child in call.children]
        [('0', (1, 4)), ('1', (1, 2))]
    """
    with running(model, training=False), ExitStack() as stack:
        recorder = _Recorder(model, once, stack)
        with recorder.attached():
            output = run(model, images)
    return recorder.root, output


class _Recorder:
    """Builds the tree of calls with hooks on every module, and keeps copies from running."""

    def __init__(self, model: nn.Module, once: Callable[[Call], bool], stack: ExitStack) -> None:
        self.root: Call | None = None
        self._running: list[Call] = []
        self._modules = dict(model.named_modules())
        self._traits = traits_of_all(model)  # modules may store something while they run
        self._once, self._stack = once, stack
        self._copies: dict[nn.Module, list[Call]] = {}  # by copy, the calls that may stand for it

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = []
        for name, module in self._modules.items():
            handles.append(module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        call = Call.begun(name, module, args, kwargs)
        if self._running:
            self._running[-1].children.append(call)
        else:
            self.root = call
        self._running.append(call)

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        call = self._running.pop()
        call.returned = Handle.of(output)
        call.form = None if call.returned is None else replace_first(output, None)
        if call.copy_of is None and self._once(call):
            self._keep_copies_from_running(call)

    def _keep_copies_from_running(self, call: Call) -> None:
        if call.module in self._copies:  # a copy that was called in another way
            self._copies[call.module].append(call)
            return
        have_run, own, parts = [call], self._traits[call.module], {*call.module.modules()}
        for other in self._modules.values():
            same = type(other) is type(call.module) and other not in self._copies and self._traits[other] == own
            if same and parts.isdisjoint(other.modules()):
                self._copies[other] = have_run
                self._stack.enter_context(standing_in({other: partial(self._run_copy, other.forward)}))

    def _run_copy(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = self._running[-1]
        original = next((run for run in self._copies[call.module] if call.is_like(run)), None)
        if original is None:
            return forward(*args, **kwargs)
        tokens = tokens_given(call.module, args, kwargs)
        output = tokens.clone(memory_format=torch.contiguous_format)
        call.copy_of = original
        call.children = self._copied(original, call, {original.given: tokens, original.returned: output})
        return replace_first(original.form, output)

    def _copied(self, original: Call, copy: Call, own: dict[Handle | None, Tensor]) -> list[Call]:
        """Return the calls below an original as those below a copy, which has its own input and output."""

        def handle(of: Handle | None) -> Handle | None:
            return replace(Handle.of(own[of]), shape=of.shape) if of in own else of

        def copied(call: Call) -> Call:
            # Modules outside of the original that it calls are shared by its copies.
            inside = f"{call.name}.".startswith(f"{original.name}.")
            name = f"{copy.name}{call.name.removeprefix(original.name)}" if inside else call.name
            return replace(
                call,
                name=name,
                module=self._modules[name],
                given=handle(call.given),
                returned=handle(call.returned),
                arguments={key: own.get(Handle.of(value), value) for key, value in call.arguments.items()},
                children=[copied(child) for child in call.children],
                copy_of=call.original,
            )

        return [copied(child) for child in original.children]
