"""Runs the skeleton of an image model, to observe where tokens go without computing them.

Blocks return their input, and layers outside of blocks return zeros of their traced output shape, so almost no
arithmetic is left. NaN marks the tokens of one image, or the output of one block: it propagates to everything that
depends on them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.backbone.anatomy import Anatomy
from peft_aim.tracing import (
    Call,
    Images,
    first_tensor,
    is_linear,
    is_mixer,
    passing_marks,
    replace_first,
    run,
    running,
    standing_in,
    tensors_in,
    tokens_given,
)

Blocks = dict[str, tuple[Call, Anatomy]]
OUTPUT = ""  # the model's own name
FIRST_SEED = 1000  # of the noise that modules return; that of the layers around them is another


@dataclass(frozen=True)
class Arrived:
    """The tokens that a block receives, or the tensors that the model returns.

    Attributes:
        shape: Shape of the tokens.
        marked: Which entries along each axis contain NaN; for what the model returns, which tensors.
    """

    shape: tuple[int, ...]
    marked: tuple[tuple[bool, ...], ...]

    @classmethod
    def of(cls, tokens: Tensor) -> Arrived:
        """Note which tokens are marked."""
        return cls(tuple(tokens.shape), tuple(tuple(_marked(tokens, axis).tolist()) for axis in range(tokens.ndim)))

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
    source: str | None = None,
    watched: Iterable[Call] = (),
) -> dict[str, Arrived]:
    """Run the skeleton of an image model on the images that it was traced on, or on others of the same shape.

    Args:
        tower: The part of the model that takes images.
        images: Its arguments; an image of NaN is marked.
        root: Its traced call.
        blocks: Its blocks.
        training: Whether to run in training mode.
        source: Name of a block whose output is marked.
        watched: Other calls.

    Returns:
        The tokens that each block or watched call receives, by name, and under :data:`OUTPUT` what the model returns.
    """
    arrived: dict[str, Arrived] = {}
    stand_ins: dict[nn.Module, Callable[..., Any]] = {
        call.module: partial(_pass_on, call, anatomy.tokens.batch, name == source)
        for name, (call, anatomy) in blocks.items()
    }
    for module, calls in _layers_outside(root, {call for call, _ in blocks.values()}).items():
        stand_ins[module] = partial(_blank, calls, module.forward)
    calls = [*(call for call, _ in blocks.values()), *watched]
    with running(tower, training), standing_in(stand_ins), passing_marks(), _noting(calls, arrived):
        output = [tensor for tensor in tensors_in(run(tower, images)) if tensor.is_floating_point()]
    arrived[OUTPUT] = Arrived((), (tuple(bool(tensor.isnan().any()) for tensor in output),))
    return arrived


def with_second_image_marked(images: Images) -> Images:
    """Return the arguments with NaN for the second of two images."""
    name, first = next(iter(images.items()))
    marked = first.clone()
    marked[1] = torch.nan
    return {**images, name: marked}


@contextmanager
def _noting(calls: Iterable[Call], arrived: dict[str, Arrived]) -> Iterator[None]:
    """Note the tokens that modules receive, by the names of their calls."""

    def note(name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        arrived[name] = Arrived.of(tokens_given(module, args, kwargs))

    with ExitStack() as stack:
        for call in calls:
            hook = call.module.register_forward_pre_hook(partial(note, call.name), with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _layers_outside(root: Call, blocks: set[Call]) -> dict[nn.Module, list[Call]]:
    """Return the calls of layers that mix features outside of blocks, by layer."""
    found: dict[nn.Module, list[Call]] = defaultdict(list)

    def collect(call: Call) -> None:
        if is_mixer(call.module) and call.returned is not None:
            found[call.module].append(call)
        elif call not in blocks:
            for child in call.children:
                collect(child)

    collect(root)
    return found


def _pass_on(call: Call, batch: int, is_source: bool, *args: Any, **kwargs: Any) -> Any:
    """Return a block's input, in the form of its output, with the marks of other tokens that it takes."""
    tokens = tokens_given(call.module, args, kwargs)
    others = [other for other in tensors_in((args, kwargs)) if other is not tokens and other.is_floating_point()]
    tokens = tokens.clone(memory_format=torch.contiguous_format)
    for other in others:
        if other.ndim > batch and other.shape[batch] == tokens.shape[batch]:
            tokens.movedim(batch, 0)[_marked(other, batch)] = torch.nan
    return replace_first(call.form, tokens.fill_(torch.nan) if is_source else tokens)


def _blank(calls: list[Call], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return zeros with the marks of the input if the layer was traced on this shape; run it otherwise."""
    given = [tensor for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()]
    known = next((call for call in calls if given and call.given and call.given.shape == given[0].shape), None)
    if known is None:
        return forward(*args, **kwargs)
    output = known.returned.zeros()
    for tensor in given:
        _mark(known.module, output, tensor)
    return replace_first(known.form, output)


def _mark(layer: nn.Module, output: Tensor, given: Tensor) -> None:
    """Mark what depends on marked input: a linear layer acts on each token, other layers on each image."""
    if is_linear(layer):
        output[given.isnan().any(-1)] = torch.nan
        return
    batch = int(isinstance(layer, nn.MultiheadAttention) and not layer.batch_first)
    marked = _marked(given, batch)
    everywhere = slice(None) if marked.any() else slice(0)
    output.movedim(batch, 0)[marked if len(marked) == output.shape[batch] else everywhere] = torch.nan


def _marked(tensor: Tensor, axis: int) -> Tensor:
    """Return for each entry along an axis whether it contains NaN."""
    return tensor.isnan().movedim(axis, 0).flatten(1).any(1) if tensor.ndim > 1 else tensor.isnan()


@torch.no_grad()
def added(tower: nn.Module, images: Images, root: Call, calls: list[Call]) -> set[Call]:
    """Return which modules' outputs are added to their inputs: the sum is what some later module takes or returns.

    Args:
        tower: The part of the model that takes images.
        images: Its arguments.
        root: Its traced call.
        calls: Calls of the modules, which map tokens to tokens of the same shape; they return noise.
    """
    if not calls or calls[0].given.device.type == "meta":
        return set()
    sums: dict[Call, Tensor] = {}
    found: set[Call] = set()

    def observe(tensor: Any) -> None:
        if isinstance(tensor, Tensor):
            found.update(call for call, total in sums.items() if _holds(total, tensor))
            for call in found & sums.keys():
                del sums[call]

    def stand_in(call: Call, index: int, *args: Any, **kwargs: Any) -> Any:
        tokens = tokens_given(call.module, args, kwargs)
        noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(FIRST_SEED + index)).to(tokens)
        sums[call] = tokens + noise
        return replace_first(call.form, noise)

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        observe(tokens_given(module, args, kwargs))

    stand_ins = {call.module: partial(stand_in, call, index) for index, call in enumerate(calls)}
    for module, known in _layers_outside(root, {*calls}).items():
        stand_ins[module] = partial(_noise, known, module.forward)
    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in tower.modules()]
    handles += [
        m.register_forward_hook(lambda m, args, output: observe(first_tensor(output))) for m in tower.modules()
    ]
    try:
        with running(tower, training=False), standing_in(stand_ins):
            run(tower, images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _noise(calls: list[Call], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return noise of a layer's traced output shape, so that no branch is silent."""
    output = _blank(calls, forward, *args, **kwargs)
    tensor = first_tensor(output)
    return replace_first(output, torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor))


def _holds(tokens: Tensor, seen: Tensor) -> bool:
    """Whether a tensor is tokens, the first of each image, or their mean, bit for bit."""
    if seen.ndim == tokens.ndim:
        wanted = [tokens, tokens.transpose(0, 1)]
    elif tokens.ndim == 3:  # (B, N, D) or (N, B, D)
        wanted = [tokens[:, 0], tokens.mean(1), tokens[0], tokens.mean(0)]
    else:
        wanted = [tokens.mean((2, 3))]
    return any(w.shape == seen.shape and torch.equal(w, seen) for w in wanted)
