"""Runs the skeleton of an image model, to observe where tokens go without computing them.

Blocks return their input, and layers outside of blocks return zeros of their traced output shape, so almost no
arithmetic is left. The tokens of one image, or the output of one block, are marked (:mod:`peft_aim.backbone.marks`):
the marks propagate to everything that depends on them.
"""

from __future__ import annotations

import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.backbone.anatomy import Anatomy
from peft_aim.backbone.marks import Marks, observed
from peft_aim.tracing import (
    Call,
    Images,
    is_linear,
    is_mixer,
    replace_first,
    run,
    running,
    standing_in,
    tensors_in,
    tokens_given,
)

Blocks = dict[str, tuple[Call, Anatomy]]
OUTPUT = ""  # the model's own name
SECOND_IMAGE = "the second image"


@dataclass(frozen=True)
class Arrived:
    """The tokens that a block receives, or the tensors that the model returns.

    Attributes:
        shape: Shape of the tokens.
        marked: Which entries along each axis are marked; for what the model returns, which tensors.
    """

    shape: tuple[int, ...]
    marked: tuple[tuple[bool, ...], ...]

    @classmethod
    def of(cls, marked: Tensor) -> Arrived:
        """Note which tokens are marked."""
        return cls(tuple(marked.shape), tuple(tuple(_along(marked, axis).tolist()) for axis in range(marked.ndim)))

    @property
    def any_marked(self) -> bool:
        """Whether there is a mark at all."""
        return any(map(any, self.marked))

    def is_of_second_image(self, axis: int) -> bool:
        """Whether exactly the second half along an axis is marked."""
        half = self.shape[axis] // 2
        return self.marked[axis] == (False,) * half + (True,) * half


@torch.no_grad()
def run_skeleton(
    tower: nn.Module,
    images: Images,
    root: Call,
    blocks: Blocks,
    training: bool = False,
    marked: str | None = None,
    watched: Iterable[Call] = (),
) -> dict[str, Arrived]:
    """Run the skeleton of an image model on the images that it was traced on.

    Args:
        tower: The part of the model that takes images.
        images: Its arguments.
        root: Its traced call.
        blocks: Its blocks.
        training: Whether to run in training mode.
        marked: Name of a block whose output is marked, or :data:`SECOND_IMAGE`.
        watched: Other calls.

    Returns:
        The tokens that each block or watched call receives, by name, and under :data:`OUTPUT` what the model returns.

    Raises:
        ValueError: If code of the model raises an error, with the module.
    """
    calls = [*(call for call, _ in blocks.values()), *watched]
    layers = layers_outside(root, {call for call, _ in blocks.values()})

    def run_with(marks: Marks) -> dict[str, Arrived]:
        arrived: dict[str, Arrived] = {}
        stand_ins: dict[nn.Module, Callable[..., Any]] = {
            call.module: partial(_pass_on, call, anatomy.tokens.batch, marks, name == marked)
            for name, (call, anatomy) in blocks.items()
        }
        stand_ins |= {module: partial(blank, known, module.forward, marks) for module, known in layers.items()}
        given = _with_second_image_marked(images, marks) if marked == SECOND_IMAGE else images
        with running(tower, training), standing_in(stand_ins), marks.in_products(), _noting(calls, marks, arrived):
            output = [tensor for tensor in tensors_in(run(tower, given)) if tensor.is_floating_point()]
        arrived[OUTPUT] = Arrived((), (tuple(bool(marks.of(tensor).any()) for tensor in output),))
        return arrived

    try:
        return observed(run_with)
    except Exception as error:
        raise ValueError(why_it_stopped(tower, error)) from error


def why_it_stopped(tower: nn.Module, error: Exception) -> str:
    """Return in words which module raised an error."""
    names = {module: name for name, module in tower.named_modules()}
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = next((m for m in reversed(owners) if isinstance(m, nn.Module) and m in names), tower)
    text = str(error).partition("\n")[0]
    return (
        f"{names[module] or 'The model'}, a {type(module).__name__}, raises {type(error).__name__}"
        f"{text and f' ({text})'} where AIM runs the model without its arithmetic, on arbitrary numbers, to see where "
        "its tokens go. If it checks its tokens, leave the check out until the adapters are added; it may be on again "
        "afterwards."
    )


def _with_second_image_marked(images: Images, marks: Marks) -> Images:
    name, first = next(iter(images.items()))
    where = torch.zeros_like(first, dtype=torch.bool)
    where[1] = True
    return {**images, name: marks.put(first, where)}


@contextmanager
def _noting(calls: Iterable[Call], marks: Marks, arrived: dict[str, Arrived]) -> Iterator[None]:
    """Note the tokens that modules receive, by the names of their calls."""

    def note(name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        arrived[name] = Arrived.of(marks.of(tokens_given(module, args, kwargs)))

    with ExitStack() as stack:
        for call in calls:
            hook = call.module.register_forward_pre_hook(partial(note, call.name), with_kwargs=True)
            stack.callback(hook.remove)
        yield


def layers_outside(root: Call, blocks: set[Call]) -> dict[nn.Module, list[Call]]:
    """Return the calls of layers that mix features outside of blocks, by layer."""
    found: dict[nn.Module, list[Call]] = defaultdict(list)

    def collect(call: Call) -> None:
        if call in blocks:
            return
        if is_mixer(call.module) and call.returned is not None:
            found[call.module].append(call)
        else:
            for child in call.children:
                collect(child)

    collect(root)
    return found


def _pass_on(call: Call, batch: int, marks: Marks, is_source: bool, *args: Any, **kwargs: Any) -> Any:
    """Return a block's input, in the form of its output, with the marks of other tokens that it takes."""
    tokens = tokens_given(call.module, args, kwargs)
    others = [other for other in tensors_in((args, kwargs)) if other is not tokens and other.is_floating_point()]
    tokens = tokens.clone(memory_format=torch.contiguous_format)
    where = torch.full_like(tokens, is_source, dtype=torch.bool)
    for other in others:
        if other.ndim > batch and other.shape[batch] == tokens.shape[batch]:
            where.movedim(batch, 0)[_along(marks.of(other), batch)] = True
    return replace_first(call.form, marks.put(tokens, where))


def blank(calls: list[Call], forward: Callable[..., Any], marks: Marks, *args: Any, **kwargs: Any) -> Any:
    """Return zeros with the marks of the input if the layer was traced on this shape; run it otherwise."""
    given = [tensor for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()]
    known = next((call for call in calls if given and call.given and call.given.shape == given[0].shape), None)
    if known is None:
        return forward(*args, **kwargs)
    output = known.returned.zeros()
    where = torch.zeros_like(output, dtype=torch.bool)
    for tensor in given:
        _mark(known.module, where, marks.of(tensor))
    return replace_first(known.form, marks.put(output, where))


def _mark(layer: nn.Module, where: Tensor, given: Tensor) -> None:
    """Mark what depends on marked input: a linear layer acts on each token, other layers on each image."""
    if is_linear(layer):
        where[given.any(-1)] = True
        return
    batch = int(isinstance(layer, nn.MultiheadAttention) and not layer.batch_first)
    marked = _along(given, batch)
    everywhere = slice(None) if marked.any() else slice(0)
    where.movedim(batch, 0)[marked if len(marked) == where.shape[batch] else everywhere] = True


def _along(marked: Tensor, axis: int) -> Tensor:
    """Return for each entry along an axis whether it contains a mark."""
    return marked.movedim(axis, 0).flatten(1).any(1) if marked.ndim > 1 else marked
