"""Runs an image model in ways that show what its structure doesn't: whether places stay, and how blocks add up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.backbone.anatomy import Anatomy
from peft_aim.tracing import (
    MIXERS,
    Call,
    Images,
    channel_axis,
    first_argument,
    first_parameter,
    first_tensor,
    is_norm,
    replace_first,
    run,
    running,
    tensors_in,
    trace,
)

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


def check_places_stay(model: nn.Module, images: Images, evaluated: Iterable[Call], blocks: Iterable[str]) -> None:
    """Check that blocks see as many tokens in training as in evaluation.

    Args:
        model: The image model.
        images: What it takes.
        evaluated: The calls of a run in evaluation mode.
        blocks: Names of the blocks, as in these calls.

    Raises:
        ValueError: If not: patches are dropped at random, others of each frame.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng([p.device for p in model.parameters() if p.is_cuda][:1]):
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


def misbuilt(model: nn.Module, tower: nn.Module, images: Images, blocks: dict[str, Anatomy]) -> dict[str, str]:
    """Find blocks that don't add up as a branch with attention and then one with an MLP, each beside a skip.

    Args:
        model: The model that the names belong to.
        tower: The part of it that takes images.
        images: Two images that are not blank and not the same.
        blocks: Its blocks.

    Returns:
        What was observed, by the names of such blocks.
    """
    one = {name: argument[:1] for name, argument in images.items()}
    silent = _probe(model, tower, one, blocks)
    noisy = [f"{name}.{part}" for name, b in blocks.items() for part in (b.norm1, b.attention) if part]
    stirred = _probe(model, tower, one, blocks, noisy, others_pass=False)
    wrong = {}
    for name, anatomy in blocks.items():
        quiet, loud = silent[name], stirred[name]
        if anatomy.mlp is None:
            quiet.between, loud.between = quiet.given, loud.returned
        added = not _equal(loud.given, loud.returned)  # else a gate behind the attention is still closed
        if anatomy.norm_first and anatomy.norm1 and not _is_called_on(loud.normed, loud.attended):
            wrong[name] = "its attention is not called on what its first norm returns"
        elif not (anatomy.norm_first and anatomy.norm1) and not _is_called_on(quiet.given, quiet.attended):
            wrong[name] = "its attention is called neither on its input nor on what a norm makes of it"
        elif not _passes(quiet.given, quiet.between):
            wrong[name] = "its MLP branch doesn't get its input plus what its attention branch returns"
        elif not _passes(quiet.between, quiet.returned):
            wrong[name] = "it doesn't return what its MLP branch got plus what that returns"
        elif added and _equal(loud.given, loud.between):
            wrong[name] = "its MLP branch doesn't see what its attention adds, as in a parallel block"
    return wrong


def scattered(model: nn.Module, tower: nn.Module, images: Images, blocks: dict[str, Anatomy]) -> dict[str, str]:
    """Find blocks that cut images into pieces but don't keep the pieces of one image together.

    Args:
        model: The model that the names belong to.
        tower: The part of it that takes images.
        images: Two images that are not blank and not the same.
        blocks: Its blocks.
    """
    cut = {name: anatomy for name, anatomy in blocks.items() if anatomy.pieces > 1}
    if not cut:
        return {}
    one, both = (_probe(model, tower, {k: v[:n] for k, v in images.items()}, cut) for n in (1, 2))
    wrong = [name for name in cut if not _leads(one[name].given, both[name].given)]
    return dict.fromkeys(wrong, "its tokens are in an order in which those of one image are not together")


def entries(model: nn.Module, tower: nn.Module, images: Images, blocks: dict[str, Anatomy]) -> list[str]:
    """Find the blocks that tokens enter first, one for each of the trunks that stand beside each other.

    Args:
        model: The model that the names belong to.
        tower: The part of it that takes images.
        images: Two images that are not blank and not the same.
        blocks: Its blocks.
    """
    one = {name: argument[:1] for name, argument in images.items()}
    quiet = _probe(model, tower, one, blocks)
    found, reached = [], set()
    for name in blocks:
        if name not in reached:
            found.append(name)
            behind = _probe(model, tower, one, blocks, {name})
            reached |= {other for other in blocks if not _equal(quiet[other].given, behind[other].given)} | {name}
    return found


@dataclass
class _Seen:
    """What passed through a block: its input, its first norm's output, its attention's input, and so on."""

    given: Tensor | None = None
    normed: Tensor | None = None
    attended: Tensor | None = None
    between: Tensor | None = None
    returned: Tensor | None = None


@torch.no_grad()
def _probe(
    model: nn.Module,
    tower: nn.Module,
    images: Images,
    blocks: dict[str, Anatomy],
    noisy: Iterable[str] = (),
    others_pass: bool = True,
) -> dict[str, _Seen]:
    """Run with both branches of all blocks silenced, and noise in place of what some modules return.

    What else is in a block passes what it gets, or does what it does.
    """
    seen: dict[str, _Seen] = defaultdict(_Seen)
    handles = []
    for name, anatomy in blocks.items():
        block = model.get_submodule(name)
        branch = anatomy.norm2 if anatomy.norm_first and anatomy.norm2 else anatomy.mlp
        inputs = {"given": "", "attended": anatomy.attention, "between": branch}
        for field, part in inputs.items():
            if part is None:
                continue
            module, note = block.get_submodule(part), partial(_note, seen[name], field, anatomy)
            handles.append(module.register_forward_pre_hook(_on_input(module, note), with_kwargs=True))
        handles += _silence(block, anatomy)
        if others_pass:
            handles += [block.get_submodule(part).register_forward_hook(_passing) for part in anatomy.others]
        handles.append(block.register_forward_hook(_on_output(partial(_note, seen[name], "returned", anatomy))))
    handles += [model.get_submodule(name).register_forward_hook(_replacing(_noise)) for name in noisy]
    for name, anatomy in ((n, a) for n, a in blocks.items() if a.norm1):
        norm, note = model.get_submodule(f"{name}.{anatomy.norm1}"), partial(_note, seen[name], "normed", anatomy)
        handles.append(norm.register_forward_hook(_on_output(note)))
    try:
        with running(tower, training=False):
            run(tower, images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _silence(block: nn.Module, anatomy: Anatomy) -> list[Any]:
    """Make both branches of a block add nothing."""
    zero = [name for name in (anatomy.norm1, anatomy.attention) if name]
    if not anatomy.norm_first and anatomy.norm2:
        zero.append(anatomy.norm2)
    handles = [block.get_submodule(name).register_forward_hook(_replacing(_zeros)) for name in zero]
    halves = [block.get_submodule(name) for name in {anatomy.mlp, anatomy.mlp_end} - {None}]
    for layer in (m for half in halves for m in half.modules()):  # the second half may add the skip by itself
        if isinstance(layer, MIXERS) or is_norm(layer):
            handles.append(layer.register_forward_hook(_replacing(_zeros)))
    return handles


def _passing(module: nn.Module, args: tuple, output: Any) -> Any:
    """Return what a module got instead of what it makes of it, where that has the same shape."""
    given, made = (args[0] if args else None), first_tensor(output)
    same = isinstance(given, Tensor) and given.shape == made.shape
    return replace_first(output, given.contiguous()) if same else None


def _note(seen: _Seen, field: str, anatomy: Anatomy, module: nn.Module, tokens: Tensor) -> None:
    """Note tokens with their channels on the last axis."""
    axis = anatomy.channels if field in ("given", "returned") else channel_axis(module, tokens.shape, anatomy.width)
    setattr(seen, field, tokens.clone().movedim(-1 if axis is None else axis, -1))


def _on_input(module: nn.Module, note: Any) -> Any:
    argument = first_parameter(module)

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        note(module, first_argument(argument, args, kwargs))

    return hook


def _on_output(note: Any) -> Any:
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        note(module, first_tensor(output))

    return hook


def _replacing(function: Any) -> Any:
    def replace(module: nn.Module, args: tuple, output: Any) -> Any:
        return replace_first(output, function(first_tensor(output)))

    return replace


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)  # in plain order, whatever it has


def _noise(tensor: Tensor) -> Tensor:
    """Return large noise, to be seen behind a LayerScale of 1e-5."""
    generator = torch.Generator().manual_seed(0)
    return 1000 * torch.randn(tensor.shape, generator=generator).to(tensor)


def _leads(one: Tensor, both: Tensor) -> bool:
    """Whether tokens of one image are the first half of those of two."""
    return len(both) == 2 * len(one) and torch.allclose(one, both[: len(one)], rtol=1e-3, atol=1e-5)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and torch.equal(one.flatten(), other.flatten())


def _is_called_on(made: Tensor, taken: Tensor) -> bool:
    """Whether tokens are taken as they were made, in any order of places; windows may be padded."""
    if made.shape[-1] != taken.shape[-1]:
        return False
    x, y = (tokens.reshape(-1, made.shape[-1]).sort(0).values for tokens in (made, taken))
    return torch.equal(x, y) if x.shape == y.shape else set(x[:, 0].tolist()) <= set(y[:, 0].tolist())


def _passes(given: Tensor, taken: Tensor) -> bool:
    """Whether tokens pass unchanged, but for a factor on each channel or another order of places (windows)."""
    if given.numel() != taken.numel():
        return False
    x, y = (tokens.reshape(-1, given.shape[-1]).double() for tokens in (given, taken))
    tolerance = 1e-4 * float(y.abs().max())
    factor = (x * y).sum(0) / x.square().sum(0).clamp(min=1e-200)
    if factor.any() and torch.allclose(factor * x, y, rtol=1e-2, atol=tolerance):
        return True
    return bool(y.any()) and torch.allclose(x.sort(0).values, y.sort(0).values, rtol=1e-2, atol=tolerance)
