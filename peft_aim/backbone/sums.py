"""Observes how the callers of modules add their outputs to the tokens: ``x + f(x)``, or ``x + drop(f(norm(x)))``.

The modules return noise, so a sum with it is recognized, bit for bit, in what some later module takes or returns. This
is observed in evaluation and in training, where a caller may drop parts of the output first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.backbone.marks import NaNMarks
from peft_aim.backbone.parts import no_norm
from peft_aim.backbone.skeleton import blank, layers_outside, why_it_stopped
from peft_aim.tracing import (
    Call,
    Images,
    first_tensor,
    is_norm,
    mixes,
    replace_first,
    run,
    running,
    standing_in,
    tokens_given,
    unchanged,
)

FIRST_SEED = 1000  # of the noise that modules return; that of the layers around them is another
NOT_ADDED = "its caller does not add its output to its input with factor 1"
DROPPED = (
    "its caller adds its output to its input in evaluation, but something else in training (a dropout in between has "
    "to be a module that takes the output, or have the rate 0)"
)


@dataclass(frozen=True)
class Skip:
    """How a caller adds the output of a module f to its tokens: ``x + end(f(norm(x)))``.

    Attributes:
        norm: The call of the norm, None for ``x + end(f(x))``.
        end: The call of the last module between f and the sum, a dropout or LayerScale; None for ``x + f(norm(x))``.
    """

    norm: Call | None = None
    end: Call | None = None


class Callers:
    """The callers of modules, in the trace of a model.

    Args:
        tower: The part of the model that takes images.
        images: Its arguments.
        root: Its traced call.
    """

    def __init__(self, tower: nn.Module, images: Images, root: Call) -> None:
        self._tower, self._images, self._root = tower, images, root
        self._siblings = {child: call.children for call in root.walk() for child in call.children}
        self._shared = {module for module, count in Counter(c.module for c in root.walk()).items() if count > 1}
        self._skips: dict[Call, Skip | str] = {}

    def skips(self, calls: list[Call]) -> dict[Call, Skip]:
        """Return how their callers add the outputs of modules that map tokens to tokens, where they do.

        Raises:
            ValueError: If code of the model raises an error on noise, with the module.
        """
        if calls and calls[0].given.device.type != "meta":
            self._observe(calls)
        found = {call: self._skips.get(call) for call in calls}
        return {call: skip for call, skip in found.items() if isinstance(skip, Skip)}

    def why_not(self, call: Call) -> str:
        """Return in words why a module's output is not added."""
        why = self._skips.get(call)
        return why if isinstance(why, str) else NOT_ADDED

    @torch.no_grad()
    def _observe(self, calls: list[Call]) -> None:
        """Run the model with noise as the outputs of modules, in evaluation and in training."""
        possible = {call: self._possible(call) for call in calls}
        seen = _Sums(self._root, possible)
        try:
            with seen.noted(self._tower), running(self._tower, training=False):
                run(self._tower, self._images)
        except Exception as error:
            raise ValueError(why_it_stopped(self._tower, error)) from error
        trained = _Sums(self._root, possible)
        with suppress(Exception), self._training(trained):  # a model may need more than images in training
            run(self._tower, self._images)
        for call, skips in possible.items():
            now = [skip for skip in skips if (call, skip) in seen.found]
            both = [skip for skip in now if call not in trained.called or (call, skip) in trained.found]
            # The last end, since one that changes nothing now may be a dropout whose rate is 0 only at first.
            self._skips[call] = both[-1] if both else DROPPED if now else self._taken(call)

    @contextmanager
    def _training(self, seen: _Sums) -> Iterator[None]:
        with unchanged(self._tower), seen.noted(self._tower), running(self._tower, training=True):
            yield

    def _possible(self, call: Call) -> list[Skip]:
        """Return how the output of a module may be added, judging by what its caller calls before and after it."""
        norm = self._norm(call)
        norms = [None] if norm is None or self._shared & {norm.module, call.module} else [None, norm]
        ends, passed = [None], call
        while (passed := self._taker(passed)) and not mixes(passed.module) and not is_norm(passed.module):
            ends.append(passed)
        return [Skip(norm, end) for end in ends for norm in norms]

    def _norm(self, call: Call) -> Call | None:
        """Return the norm by the same caller whose output a call gets."""
        before = self._siblings.get(call, [])
        before = before[: before.index(call)] if before else []
        fitting = (c for c in before if is_norm(c.module) and _keeps(c, call.given.shape))
        return next((norm for norm in fitting if norm.returned == call.given), None)

    def _taker(self, call: Call) -> Call | None:
        """Return the next call, by the same caller, on the output of a call."""
        behind = self._siblings.get(call, [])
        behind = behind[behind.index(call) + 1 :] if behind else []
        return next((c for c in behind if c.given == call.returned and _keeps(c, call.returned.shape)), None)

    def _taken(self, call: Call) -> str:
        """Return why the output is not added, with what happens to it or to the input instead."""
        taker, norm = self._taker(call), self._norm(call)
        if taker is not None:
            return f"{NOT_ADDED}: {taker.name}, a {type(taker.module).__name__}, takes it"
        if norm is not None and self._shared & {norm.module, call.module}:
            repeated = norm if norm.module in self._shared else call
            return (
                f"{NOT_ADDED}, but perhaps to that of {norm.name}; {repeated.name} is called on other tokens as well"
            )
        before = self._siblings.get(call, [call])
        makers = [c for c in before[: before.index(call)] if c.returned == call.given and not mixes(c.module)]
        if makers and norm is None:
            return f"{NOT_ADDED} (it gets the output of {makers[-1].name}, {no_norm(makers[-1])})"
        return NOT_ADDED


def _keeps(call: Call, shape: tuple[int, ...]) -> bool:
    return None not in (call.given, call.returned) and call.given.shape == call.returned.shape == shape


class _Sums:
    """The sums that are seen in one run.

    Attributes:
        found: The modules and how their outputs are added.
        called: The modules that ran.
    """

    def __init__(self, root: Call, possible: dict[Call, list[Skip]]) -> None:
        self._root, self._possible = root, possible
        self._norms = {skip.norm.module for skips in possible.values() for skip in skips if skip.norm is not None}
        self._given: dict[nn.Module, Tensor] = {}  # by norm
        self._normed: dict[nn.Module, Tensor] = {}
        self._terms: dict[Call, dict[Call | None, Tensor]] = {}  # of calls with an end: what it is added to, by norm
        self._waiting: dict[tuple[Call, Skip], _Sum] = {}
        self.found: set[tuple[Call, Skip]] = set()
        self.called: set[Call] = set()

    @contextmanager
    def noted(self, tower: nn.Module) -> Iterator[None]:
        """Note the sums of a run."""
        stand_ins = {call.module: partial(self._return_noise, call, i) for i, call in enumerate(self._possible)}
        for module, known in layers_outside(self._root, {*self._possible}).items():
            stand_ins[module] = partial(_noise, known, module.forward)
        with ExitStack() as stack:
            for module in tower.modules():
                stack.callback(module.register_forward_pre_hook(self._before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(self._after).remove)
            stack.enter_context(standing_in(stand_ins))
            yield

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        tokens = tokens_given(module, args, kwargs)
        self._look_at(tokens)
        if module in self._norms and isinstance(tokens, Tensor):
            self._given[module] = tokens

    def _after(self, module: nn.Module, args: tuple, output: Any) -> None:
        tensor = first_tensor(output)
        self._look_at(tensor)
        if module in self._norms:
            self._normed[module] = tensor
        for call, skips in self._possible.items():
            for skip in skips:
                if skip.end is not None and skip.end.module is module:
                    self._expect(call, skip, self._terms.get(call, {}), tensor)

    def _return_noise(self, call: Call, index: int, *args: Any, **kwargs: Any) -> Any:
        tokens = tokens_given(call.module, args, kwargs)
        noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(FIRST_SEED + index)).to(tokens)
        self.called.add(call)
        terms = {None: tokens.clone()}
        for norm in {skip.norm for skip in self._possible[call]} - {None}:
            normed = self._normed.get(norm.module)
            if normed is not None and normed.shape == tokens.shape and torch.equal(normed, tokens):
                terms[norm] = self._given[norm.module].clone()
        for skip in self._possible[call]:
            if skip.end is None:
                self._expect(call, skip, terms, noise)
            else:
                self._terms[call] = terms
        return replace_first(call.form, noise)

    def _expect(self, call: Call, skip: Skip, terms: dict[Call | None, Tensor], output: Tensor) -> None:
        term = terms.get(skip.norm)
        if term is not None and (call, skip) not in self._waiting and term.shape == output.shape:
            self._waiting[call, skip] = _Sum(term, output)

    def _look_at(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor):
            hashed = cache(partial(_layouts, tensor))  # most sums are of tokens of one width
            waiting = [(key, total) for key, total in self._waiting.items() if key not in self.found]
            self.found.update(key for key, total in waiting if total.is_in(tensor, hashed))


def _noise(calls: list[Call], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return noise of a layer's traced output shape, so that no branch is silent."""
    output = blank(calls, forward, NaNMarks(), *args, **kwargs)
    tensor = first_tensor(output)
    return replace_first(output, torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor))


class _Sum:
    """A sum of tokens ``(B, N, D)``, ``(N, B, D)``, ``(B, D, H, W)`` or ``(B, H, W, D)`` and noise.

    It is recognized by its tokens, but for those that are constant before, as new class tokens often are.
    """

    def __init__(self, tokens: Tensor, noise: Tensor) -> None:
        total = tokens + noise
        self._dtype = total.dtype
        self._hashed: list[tuple[int, Tensor, int]] = []  # width, tokens, and how many constant ones are left out
        for axis in (1, -1) if tokens.ndim == 4 else (-1,):
            varies = (tokens != tokens.narrow(axis, 0, 1)).any(axis).flatten()
            hashed = _hashed(total.movedim(axis, -1))
            self._hashed.append((total.shape[axis], hashed[varies], int((~varies).sum())))
        axes = ((2, 3),) if tokens.ndim == 4 else (0, 1)
        self._means = [total.mean(axis) for axis in axes]

    def is_in(self, seen: Tensor, hashed: Callable[[int], list[Tensor]]) -> bool:
        """Whether a tensor consists of its tokens, in any order and among others, or is its mean.

        A caller may split off a class token or registers, or average these over windows, and lay out the rest as an
        image or by groups. Other tokens in the place of more than half are another sum.

        Args:
            seen: The tensor.
            hashed: Returns its tokens of a width, in each layout.
        """
        if seen.dtype != self._dtype:
            return False
        if any(mean.shape == seen.shape and torch.equal(mean, seen) for mean in self._means):
            return True
        for width, tokens, constant in self._hashed:
            for others in hashed(width):
                there = int(torch.isin(tokens, others).sum())
                if 2 * there >= len(tokens) > 0 or 0 < there >= len(others) - constant:
                    return True
        return False


def _layouts(seen: Tensor, width: int) -> list[Tensor]:
    """Return what may be the tokens of a width in a tensor, by its axes of this size; the last may have several."""
    axes = [axis for axis, size in enumerate(seen.shape[:-1]) if size == width]
    layouts = [seen.movedim(axis, -1) for axis in axes] + ([seen] if seen.numel() % width == 0 else [])
    return [_hashed(layout.reshape(-1, width)) for layout in layouts]


def _hashed(tokens: Tensor) -> Tensor:
    """Return a number for each token ``(*, D)``, that of equal ones only: in half precision, many values are equal.

    Example:
        >>> _hashed(torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])).unique().numel()
        2
    """
    bits = tokens.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tokens.element_size()]).long()
    factors = torch.randint(-(2**62), 2**62, bits.shape[-1:], generator=torch.Generator().manual_seed(0))
    return (bits * factors.to(bits.device)).sum(-1).flatten()
