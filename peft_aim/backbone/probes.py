"""Checks what the structure of an image model doesn't show: whether positions stay, and how blocks add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.backbone.anatomy import Anatomy
from peft_aim.backbone.skeleton import Blocks, run_skeleton
from peft_aim.tracing import (
    MIXERS,
    Call,
    Handle,
    Images,
    channel_axis,
    first_argument,
    first_parameter,
    first_tensor,
    is_norm,
    replace_first,
    running,
    standing_in,
    tensors_in,
)

WHY_POSITIONS_MUST_STAY = (
    "so temporal attention would mix spatial positions. Build the model without dropping or masking patches "
    "(patch_drop_rate=0 in timm, patch_dropout=0 in open_clip)."
)


def check_alike(model: nn.Module, output: Any) -> None:
    """Check that two copies of one image get the same results.

    Args:
        model: The image model.
        output: What it returned, in evaluation mode, for a batch of the two.

    Raises:
        ValueError: If not: a model that masks patches at random (ViT-MAE) keeps other positions of each frame.
    """
    for tensor in tensors_in(output):
        if tensor.device.type == "meta" or tensor.ndim < 2 or tensor.shape[0] != 2:
            continue
        one, other = tensor.double()
        spread = 0.02 * one.abs().max() if one.numel() else 0.0
        if not torch.allclose(one, other, rtol=0, atol=float(spread), equal_nan=True):
            raise ValueError(
                f"{type(model).__name__} returns other values for one image than for its copy, "
                f"{WHY_POSITIONS_MUST_STAY}"
            )


def check_positions_stay(tower: nn.Module, images: Images, root: Call, blocks: Blocks) -> None:
    """Check that blocks see as many tokens in training as in evaluation.

    Args:
        tower: The part of the model that takes images.
        images: What it takes.
        root: Its traced call, in evaluation mode.
        blocks: Its blocks.

    Raises:
        ValueError: If not: patches are dropped at random, others of each frame.
    """
    buffers = [(buffer, buffer.clone()) for buffer in tower.buffers()]
    try:
        with torch.random.fork_rng([p.device for p in tower.parameters() if p.is_cuda][:1]):
            arrived = run_skeleton(tower, images, root, blocks, training=True)
            left = {call: _probe(call, anatomy, training=True).returned for call, anatomy in _originals(blocks)}
    except Exception:  # one that wants more than images in training shows nothing
        return
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    for name, (call, _) in blocks.items():
        seen = arrived[name].shape if name in arrived else call.given.shape
        kept = left[call.original].numel() == call.given.numel
        if seen != call.given.shape or not kept:
            what = f"sees tokens {seen}" if kept else f"makes {tuple(left[call.original].shape)} of its tokens"
            raise ValueError(
                f"{name} {what} in training where it sees {call.given.shape} in evaluation, {WHY_POSITIONS_MUST_STAY}"
            )


def scattered(tower: nn.Module, images: Images, root: Call, blocks: Blocks) -> dict[str, str]:
    """Find blocks that split images into patch groups but don't keep the groups of one image together.

    Args:
        tower: The part of the model that takes images.
        images: What it takes.
        root: Its traced call.
        blocks: Its blocks.
    """
    split = {name: anatomy.groups for name, (_, anatomy) in blocks.items() if anatomy.groups > 1}
    if not split:
        return {}
    name, first = next(iter(images.items()))
    marked = first.clone()
    marked[1] = torch.nan
    arrived = run_skeleton(tower, {**images, name: marked}, root, blocks)
    wrong = [name for name, groups in split.items() if arrived[name].marked != (False,) * groups + (True,) * groups]
    return dict.fromkeys(wrong, "its tokens are in an order in which those of one image are not together")


def entries(tower: nn.Module, images: Images, root: Call, blocks: Blocks) -> list[str]:
    """Find the blocks that tokens enter first, one for each of the trunks that stand beside each other.

    Args:
        tower: The part of the model that takes images.
        images: What it takes.
        root: Its traced call.
        blocks: Its blocks.
    """
    found, reached = [], set()
    for name in blocks:
        if name not in reached:
            found.append(name)
            arrived = run_skeleton(tower, images, root, blocks, source=name)
            reached |= {other for other, tokens in arrived.items() if any(tokens.marked)} | {name}
    return found


def misbuilt(blocks: Blocks) -> dict[str, str]:
    """Find blocks that don't add up as a branch with attention and then one with an MLP, each beside a skip.

    Args:
        blocks: The blocks; copies are not probed once more.

    Returns:
        What was observed, by the names of such blocks.
    """
    faults = {call: _fault(call, anatomy) for call, anatomy in _originals(blocks)}
    found = {name: faults[call.original] for name, (call, _) in blocks.items()}
    return {name: fault for name, fault in found.items() if fault is not None}


def _originals(blocks: Blocks) -> list[tuple[Call, Anatomy]]:
    """Return the blocks that ran themselves, for themselves and their copies."""
    return list({call.original: anatomy for call, anatomy in blocks.values()}.items())


def _fault(call: Call, anatomy: Anatomy) -> str | None:
    quiet, loud = _probe(call, anatomy), _probe(call, anatomy, loud=True)
    if anatomy.mlp is None:
        quiet.between, loud.between = quiet.given, loud.returned
    added = not _equal(loud.given, loud.returned)  # else a gate behind the attention is still closed
    if anatomy.norm_first and anatomy.norm1 and not _is_called_on(loud.normed, loud.attended):
        return "its attention is not called on what its first norm returns"
    if not (anatomy.norm_first and anatomy.norm1) and not _is_called_on(quiet.given, quiet.attended):
        return "its attention is called neither on its input nor on what a norm makes of it"
    if not _passes(quiet.given, quiet.between):
        return "its MLP branch doesn't get its input plus what its attention branch returns"
    if not _passes(quiet.between, quiet.returned):
        return "it doesn't return what its MLP branch got plus what that returns"
    if added and _equal(loud.given, loud.between):
        return "its MLP branch doesn't see what its attention adds, as in a parallel block"
    return None


@dataclass
class _Seen:
    """What passed through a block: its input, what its first norm returned, what its attention got, and so on."""

    given: Tensor
    normed: Tensor | None
    attended: Tensor
    between: Tensor | None
    returned: Tensor


@torch.no_grad()
def _probe(call: Call, anatomy: Anatomy, loud: bool = False, training: bool = False) -> _Seen:
    """Run a block alone on noise, with both branches silenced; nothing in them is computed.

    Args:
        call: The traced call of the block.
        anatomy: Its parts.
        loud: Whether its first norm and its attention return noise instead of nothing. What else is in the block then
            does what it does; otherwise it passes on what it gets.
        training: Whether it runs as in training.
    """
    parts = {part.name.removeprefix(f"{call.name}."): part for part in call.walk()}
    stand_ins, noted = _silenced(parts, anatomy, loud), {}
    branch = anatomy.norm2 if anatomy.norm_first and anatomy.norm2 else anatomy.mlp
    for name in filter(None, (anatomy.attention, branch)):
        module = parts[name].module
        stand_ins[module] = partial(_note_input, noted, module, stand_ins.get(module, module.forward))
    tokens = _noise(call.given, seed=1)
    with running(call.module, training), standing_in(stand_ins):
        returned = first_tensor(call.again(tokens.clone()))

    def input_of(name: str | None) -> Tensor | None:
        return name and _channels_last(noted[parts[name].module], parts[name].module, anatomy)

    norm = anatomy.norm1 and parts[anatomy.norm1]
    return _Seen(
        given=tokens.movedim(anatomy.channels, -1),
        normed=norm and _channels_last((_loud if loud else Handle.zeros)(norm.returned), norm.module, anatomy),
        attended=input_of(anatomy.attention),
        between=input_of(branch),
        returned=returned.movedim(anatomy.channels, -1),
    )


def _silenced(parts: dict[str, Call], anatomy: Anatomy, loud: bool) -> dict[nn.Module, Callable[..., Any]]:
    """Return stand-ins that make both branches of a block add nothing, or its attention add noise."""
    silent = [layer for half in {anatomy.mlp, anatomy.mlp_end} - {None} for layer in parts[half].walk()]
    silent = [layer for layer in silent if isinstance(layer.module, MIXERS) or is_norm(layer.module)]
    if not anatomy.norm_first and anatomy.norm2:
        silent.append(parts[anatomy.norm2])
    found = {part.module: partial(_return, part, Handle.zeros) for part in silent}
    for name in filter(None, (anatomy.norm1, anatomy.attention)):
        found[parts[name].module] = partial(_return, parts[name], _loud if loud else Handle.zeros)
    for other in (parts[name] for name in anatomy.others if not loud):
        if other.given is not None and other.returned is not None and other.given.shape == other.returned.shape:
            found[other.module] = partial(_pass_on, other)
    return found


def _return(part: Call, make: Callable[[Handle], Tensor], *args: Any, **kwargs: Any) -> Any:
    return replace_first(part.form, make(part.returned))


def _pass_on(part: Call, *args: Any, **kwargs: Any) -> Any:
    return replace_first(part.form, _first(part.module, args, kwargs).contiguous())


def _note_input(
    noted: dict[nn.Module, Tensor], module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    noted[module] = _first(module, args, kwargs).clone()
    return forward(*args, **kwargs)


def _first(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    return first_tensor(first_argument(first_parameter(module), args, kwargs))


def _channels_last(tokens: Tensor, module: nn.Module, anatomy: Anatomy) -> Tensor:
    axis = channel_axis(module, tokens.shape, anatomy.width)
    return tokens.movedim(-1 if axis is None else axis, -1)


def _noise(like: Handle, seed: int) -> Tensor:
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(like.device, like.dtype)


def _loud(like: Handle) -> Tensor:
    """Return noise that is seen behind a LayerScale of 1e-5, too."""
    return 1000 * _noise(like, seed=0)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and torch.equal(one.flatten(), other.flatten())


def _is_called_on(made: Tensor, taken: Tensor) -> bool:
    """Whether tokens are taken as they were made, in any order of positions; windows may be padded."""
    if made.shape[-1] != taken.shape[-1]:
        return False
    x, y = (tokens.reshape(-1, made.shape[-1]).sort(0).values for tokens in (made, taken))
    return torch.equal(x, y) if x.shape == y.shape else set(x[:, 0].tolist()) <= set(y[:, 0].tolist())


def _passes(given: Tensor, taken: Tensor) -> bool:
    """Whether tokens pass unchanged, but for a factor on each channel or another order of positions (windows)."""
    if given.numel() != taken.numel():
        return False
    x, y = (tokens.reshape(-1, given.shape[-1]).double() for tokens in (given, taken))
    tolerance = 1e-4 * float(y.abs().max())
    factor = (x * y).sum(0) / x.square().sum(0).clamp(min=1e-200)
    if factor.any() and torch.allclose(factor * x, y, rtol=1e-2, atol=tolerance):
        return True
    return bool(y.any()) and torch.allclose(x.sort(0).values, y.sort(0).values, rtol=1e-2, atol=tolerance)
