"""Runs an image model in ways that show what its structure doesn't: whether places stay, and how blocks add up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.anatomy import Anatomy
from peft_aim.outputs import first_argument, first_parameter, first_tensor, replace_first, tensors_in
from peft_aim.trace import Call, running, trace

WHY_PLACES_MUST_STAY = (
    "so attention along time would mix places. Build the model without such dropping or masking of patches "
    "(patch_drop_rate=0 in timm, patch_dropout=0 in open_clip)."
)


def check_alike(model: nn.Module, output: Any) -> None:
    """Check that two copies of one image get the same results.

    Args:
        model: The image model.
        output: What it returned, in evaluation mode, for a batch of the two.

    Raises:
        ValueError: If not: a model that masks patches at random (ViT-MAE) keeps other places of each frame.
    """
    for tensor in tensors_in(output):
        if tensor.device.type == "meta" or tensor.ndim < 2 or tensor.shape[0] != 2:
            continue
        one, other = tensor.double()
        spread = 0.02 * one.abs().max() if one.numel() else 0.0
        if not torch.allclose(one, other, rtol=0, atol=float(spread), equal_nan=True):
            raise ValueError(
                f"{type(model).__name__} returns other values for one image than for its copy, {WHY_PLACES_MUST_STAY}"
            )


def check_places_stay(model: nn.Module, images: Tensor, evaluated: Iterable[Call], blocks: Iterable[str]) -> None:
    """Check that blocks see as many tokens in training as in evaluation.

    Args:
        model: The image model.
        images: Images ``(B, C, H, W)``.
        evaluated: The calls of a run in evaluation mode.
        blocks: Names of the blocks, as in these calls.

    Raises:
        ValueError: If not: patches are dropped at random, others of each frame.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            root, _ = trace(model, images, training=True)
    except Exception:  # one that wants more than images in training shows nothing
        return
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    trained = {id(call.module): call.given for call in root.walk()}
    for call in evaluated:
        given = trained.get(id(call.module))
        if call.name in blocks and given is not None and given.shape != call.given.shape:
            raise ValueError(
                f"{call.name} sees tokens {given.shape} in training where it sees {call.given.shape} in evaluation, "
                f"{WHY_PLACES_MUST_STAY}"
            )


def misbuilt(model: nn.Module, tower: nn.Module, images: Tensor, blocks: dict[str, Anatomy]) -> dict[str, str]:
    """Find blocks that don't add up as ``x + attention(norm1(x))``, then ``x + mlp(norm2(x))``, one after the other.

    Args:
        model: The model that the names belong to.
        tower: The part of it that takes images.
        images: Images ``(B, C, H, W)``, not blank.
        blocks: Its blocks.

    Returns:
        What was observed, by the names of such blocks.
    """
    first = next(iter(blocks))
    silent = _probe(model, tower, images, blocks)
    stirred = _probe(model, tower, images, blocks, attention=_noise)
    behind = _probe(model, tower, images, blocks, noisy_block=first)
    wrong = {}
    for name in blocks:
        quiet, loud = silent[name], stirred[name]
        added = not _same(loud.given, loud.returned)  # else a gate behind the attention is still closed
        if quiet.attended.count_nonzero():
            wrong[name] = "its attention is not called on what its first norm returns"
        elif not _passes(quiet.given, quiet.between):
            wrong[name] = "its second norm doesn't get its input plus what its attention returns"
        elif not _passes(quiet.between, quiet.returned):
            wrong[name] = "it doesn't return what its second norm got plus what its MLP returns"
        elif added and _same(loud.given, loud.between):
            wrong[name] = "its second norm doesn't see what its attention adds, as in a parallel block"
        elif name != first and _same(quiet.given, behind[name].given):
            wrong[name] = f"it doesn't come behind {first}, where the temporal embedding is added"
    return wrong


@dataclass
class _Seen:
    """What passed through a block: its input, its attention's, its second norm's, and what it returned."""

    given: Tensor | None = None
    attended: Tensor | None = None
    between: Tensor | None = None
    returned: Tensor | None = None


@torch.no_grad()
def _probe(
    model: nn.Module,
    tower: nn.Module,
    images: Tensor,
    blocks: dict[str, Anatomy],
    attention: Callable[[Tensor], Tensor] = torch.zeros_like,
    noisy_block: str | None = None,
) -> dict[str, _Seen]:
    """Run with first norms and MLPs silenced, attentions silenced or replaced, and one block replaced by noise."""
    seen: dict[str, _Seen] = defaultdict(_Seen)
    handles = []
    for name, anatomy in blocks.items():
        block = model.get_submodule(name)
        norm1, attn, norm2, mlp = (
            block.get_submodule(part) for part in (anatomy.norm1, anatomy.attention, anatomy.norm2, anatomy.mlp)
        )
        for module, field in ((block, "given"), (attn, "attended"), (norm2, "between")):
            handles.append(module.register_forward_pre_hook(_noting(module, seen[name], field), with_kwargs=True))
        for module, function in ((norm1, torch.zeros_like), (attn, attention), (mlp, torch.zeros_like)):
            handles.append(module.register_forward_hook(_replacing(function)))
        handles.append(block.register_forward_hook(_noting_output(seen[name])))
        if name == noisy_block:
            handles.append(block.register_forward_hook(_replacing(_noise)))
    try:
        with running(tower, training=False):
            tower(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _noting(module: nn.Module, seen: _Seen, field: str) -> Any:
    argument = first_parameter(module)

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        setattr(seen, field, first_argument(argument, args, kwargs).clone())

    return note


def _noting_output(seen: _Seen) -> Any:
    def note(module: nn.Module, args: tuple, output: Any) -> None:
        seen.returned = first_tensor(output).clone()

    return note


def _replacing(function: Any) -> Any:
    def replace(module: nn.Module, args: tuple, output: Any) -> Any:
        return replace_first(output, function(first_tensor(output)))

    return replace


def _noise(tensor: Tensor) -> Tensor:
    """Return large noise, to be seen behind a LayerScale of 1e-5."""
    generator = torch.Generator().manual_seed(0)
    return 1000 * torch.randn(tensor.shape, generator=generator).to(tensor)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and torch.equal(one.flatten(), other.flatten())


def _passes(given: Tensor, taken: Tensor) -> bool:
    """Whether tokens pass unchanged, but for a constant factor on each channel."""
    if given.numel() != taken.numel():
        return False
    x, y = (tokens.flatten(0, -2).double() for tokens in (given, taken.view_as(given)))
    factor = (x * y).sum(0) / x.square().sum(0).clamp(min=1e-200)
    return bool(factor.any()) and torch.allclose(factor * x, y, rtol=1e-2, atol=1e-4 * float(y.abs().max()))
