"""Checks what the structure of a model does not show: that tokens keep their positions, and branches are added."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.backbone.anatomy import Anatomy
from peft_aim.backbone.parts import inside, on_what
from peft_aim.backbone.skeleton import OUTPUT, SECOND_IMAGE, Blocks, run_skeleton
from peft_aim.tracing import (
    Call,
    Handle,
    Images,
    channel_axis,
    first_tensor,
    is_mixer,
    is_norm,
    replace_first,
    running,
    standing_in,
    tensors_in,
    tokens_given,
    unchanged,
)

WHY_POSITIONS_MUST_STAY = (
    "so temporal attention would mix spatial positions. Build the model without dropping or masking patches "
    "(patch_drop_rate=0 in timm, patch_dropout=0 in open_clip)."
)


WITHOUT_PARTS = Anatomy(None, None, None, None, None, width=0, attend=None)


def check_alike(model: nn.Module, output: Any) -> None:
    """Check that two copies of one image get the same outputs.

    Args:
        model: The image model.
        output: Its output in evaluation mode for a batch of the two.

    Raises:
        ValueError: If they differ: a model that masks random patches (ViT-MAE) keeps others in each frame.
    """
    for tensor in tensors_in(output):
        if tensor.device.type == "meta" or tensor.ndim < 2 or tensor.shape[0] != 2:
            continue
        one, other = tensor.double()
        spread = 0.02 * one.abs().max() if one.numel() else 0.0
        if not torch.allclose(one, other, rtol=0, atol=float(spread), equal_nan=True):
            raise ValueError(
                f"{type(model).__name__} returns different outputs for two copies of one image, "
                f"{WHY_POSITIONS_MUST_STAY}"
            )


def check_positions_stay(tower: nn.Module, images: Images, root: Call, blocks: Blocks) -> None:
    """Check that blocks receive the same number of tokens in training as in evaluation.

    Args:
        tower: The part of the model that takes images.
        images: Its arguments.
        root: Its traced call, in evaluation mode.
        blocks: Its blocks.

    Raises:
        ValueError: If they don't: patches are dropped at random, different ones in each frame.
    """
    arrived, left = {}, {}
    with unchanged(tower):
        with suppress(Exception):  # a model that needs more than images in training cannot be checked
            arrived = run_skeleton(tower, images, root, blocks, training=True)
        for call, anatomy in _originals(blocks):
            with suppress(Exception):  # nor can a block that fails in training
                left[call] = _probe(call, anatomy, training=True).returned
    for name, (call, _) in blocks.items():
        seen = arrived[name].shape if name in arrived else call.given.shape
        kept = call.original not in left or left[call.original].numel() == call.given.numel
        if seen != call.given.shape or not kept:
            what = f"receives tokens {seen}" if kept else f"returns tokens {tuple(left[call.original].shape)}"
            raise ValueError(
                f"{name} {what} in training, but {call.given.shape} in evaluation, {WHY_POSITIONS_MUST_STAY}"
            )


def scattered(tower: nn.Module, images: Images, root: Call, blocks: Blocks) -> dict[str, str]:
    """Find blocks that split images into patch groups and mix the order of images and groups.

    Args:
        tower: The part of the model that takes images.
        images: Its arguments.
        root: Its traced call.
        blocks: Its blocks.
    """
    split = [name for name, (_, anatomy) in blocks.items() if anatomy.tokens.groups > 1]
    if not split:
        return {}
    arrived = run_skeleton(tower, images, root, blocks, marked=SECOND_IMAGE)
    wrong = [name for name in split if not arrived[name].is_of_second_image(axis=0)]
    return dict.fromkeys(wrong, "the patch groups of one image are not next to each other in its tokens")


def entries(tower: nn.Module, images: Images, root: Call, blocks: Blocks) -> list[str]:
    """Find the blocks that tokens enter first, one for each parallel trunk.

    Args:
        tower: The part of the model that takes images.
        images: Its arguments.
        root: Its traced call.
        blocks: Its blocks.
    """
    found, reached = [], set()
    for name in blocks:
        if name not in reached:
            found.append(name)
            arrived = run_skeleton(tower, images, root, blocks, marked=name)
            reached |= {other for other, tokens in arrived.items() if tokens.any_marked} | {name}
    return found


def ineffective(tower: nn.Module, images: Images, root: Call, blocks: Blocks) -> dict[str, str]:
    """Find blocks for which a change of their tokens over time would be of no use.

    Whether a change of the output of a block with known parts is of use, the check of the adapter tells later.

    Args:
        tower: The part of the model that takes images.
        images: Its arguments.
        root: Its traced call.
        blocks: Its blocks.
    """
    found, arrived = {}, run_skeleton(tower, images, root, blocks, marked=SECOND_IMAGE)
    for name, (_, anatomy) in blocks.items():
        if name not in arrived:  # part of another, which did not run
            continue
        if not arrived[name].any_marked:
            found[name] = "the tokens that it takes first do not depend on the image"
        elif (
            anatomy.attention is None and not run_skeleton(tower, images, root, blocks, marked=name)[OUTPUT].any_marked
        ):
            found[name] = "the tokens that it returns first do not reach the output of the model"
    return found


def reaching(tower: nn.Module, images: Images, root: Call, blocks: Blocks, norms: list[Call]) -> list[Call]:
    """Return the norms outside of blocks whose output reaches the output of the model.

    Args:
        tower: The part of the model that takes images.
        images: Its arguments.
        root: Its traced call.
        blocks: Its blocks.
        norms: The calls of the norms.
    """

    def reaches(norm: Call) -> bool:
        parts = {**blocks, norm.name: (norm, WITHOUT_PARTS)}
        return run_skeleton(tower, images, root, parts, marked=norm.name)[OUTPUT].any_marked

    return [norm for norm in norms if reaches(norm)]


def readings(blocks: Blocks) -> dict[str, Anatomy | str]:
    """Check that blocks are an attention branch followed by an MLP branch, each with a skip connection.

    Blocks without known parts are left out.

    Args:
        blocks: The blocks. Of copies, one is probed.

    Returns:
        By the names of the blocks, the anatomy that holds where a norm turns out to be behind a sum,
        ``x = norm(x + attention(x))``, otherwise what was observed; nothing for blocks that are built as supposed.
    """
    found: dict[Call, Anatomy | str] = {}
    for call, anatomy in _originals(blocks):
        fault = _fault(call, anatomy)
        if fault is not None:
            found[call] = next((other for other in _with_norms_on_sums(anatomy) if not _fault(call, other)), fault)
    return {name: found[call.original] for name, (call, _) in blocks.items() if call.original in found}


def _with_norms_on_sums(anatomy: Anatomy) -> Iterator[Anatomy]:
    """Iterate over other ways to read a block: its second norm, or both, act on the sum of a branch and its input."""
    others = (*anatomy.others, *filter(None, [anatomy.norm2]))
    if anatomy.norm_first and anatomy.norm2:
        yield replace(anatomy, norm2=None, others=others)
    elif not anatomy.norm_first:
        others = (*others, anatomy.norm1)
        yield replace(anatomy, norm1=None, norm2=None, norm_first=True, others=others)


def _originals(blocks: Blocks) -> list[tuple[Call, Anatomy]]:
    """Return the blocks with known parts that ran, without their copies."""
    known = (block for block in blocks.values() if block[1].attention is not None)
    return list({call.original: anatomy for call, anatomy in known}.items())


def _fault(call: Call, anatomy: Anatomy) -> str | None:
    quiet, loud = _probe(call, anatomy), _probe(call, anatomy, loud=True)
    if anatomy.mlp is None:
        quiet.between, loud.between = quiet.given, loud.returned
    added = not _equal(loud.given, loud.returned)  # otherwise a gate after the attention is still closed
    if anatomy.norm_first and anatomy.norm1 and not _is_called_on(loud.normed, loud.attention_input):
        return "its attention is not called on the output of its first norm"
    if not (anatomy.norm_first and anatomy.norm1) and not _is_called_on(quiet.given, quiet.attention_input):
        return f"its attention is called {on_what(call, anatomy)}"
    if not _passes(quiet.given, quiet.between):
        return "the input of its MLP branch is not the input of the block plus the output of the attention branch"
    if not _passes(quiet.between, quiet.returned):
        return "its output is not the input of the MLP branch plus the output of that branch"
    if added and _equal(loud.given, loud.between):
        return "its MLP branch runs in parallel to its attention, not after it"
    return None


@dataclass
class _Observed:
    """The tokens observed in a block, with the channels last.

    Attributes:
        given: Its input.
        normed: The output of its first norm.
        attention_input: The input of its attention.
        between: The input of its MLP branch.
        returned: Its output.
    """

    given: Tensor
    normed: Tensor | None
    attention_input: Tensor
    between: Tensor | None
    returned: Tensor


@torch.no_grad()
def _probe(call: Call, anatomy: Anatomy, loud: bool = False, training: bool = False) -> _Observed:
    """Run a block alone on random tokens, with stand-ins for its branches, which compute nothing.

    Args:
        call: The traced call of the block.
        anatomy: Its parts.
        loud: If True, its first norm and its attention return noise, and its other parts run. If False, both branches
            return zeros, and its other parts return their input. Norms outside of the branches always do.
        training: Whether to run in training mode.
    """
    parts = {inside(call, part): part for part in call.walk()}
    stand_ins, noted = _silenced(parts, anatomy, loud), {}
    branch = anatomy.norm2 if anatomy.norm_first and anatomy.norm2 else anatomy.mlp
    for name in {anatomy.attention, branch} - {None}:
        module = parts[name].module
        stand_ins[module] = partial(_note_input, noted, module, stand_ins.get(module, module.forward))
    tokens = _noise(call.given, seed=1)
    with running(call.module, training), standing_in(stand_ins):
        returned = first_tensor(call.again(tokens.clone()))
    if anatomy.skip_outside:
        returned = tokens + returned

    def input_of(name: str | None) -> Tensor | None:
        return None if name is None else _channels_last(noted[parts[name].module], parts[name].module, anatomy)

    norm = anatomy.norm1 and parts[anatomy.norm1]
    return _Observed(
        given=anatomy.tokens.batch_first(tokens),
        normed=norm and _channels_last((_loud if loud else Handle.zeros)(norm.returned), norm.module, anatomy),
        attention_input=input_of(anatomy.attention),
        between=input_of(branch),
        returned=anatomy.tokens.batch_first(returned),
    )


def _silenced(parts: dict[str, Call], anatomy: Anatomy, loud: bool) -> dict[nn.Module, Callable[..., Any]]:
    """Return stand-ins with which both branches of a block add zeros, or its attention branch adds noise."""
    silent = [layer for half in {anatomy.mlp, anatomy.mlp_end} - {None} for layer in parts[half].walk()]
    silent = [layer for layer in silent if is_mixer(layer.module) or is_norm(layer.module)]
    if not anatomy.norm_first and anatomy.norm2:
        silent.append(parts[anatomy.norm2])
    found = {part.module: partial(_return, part, Handle.zeros) for part in silent}
    for name in {anatomy.norm1, anatomy.attention} - {None}:
        found[parts[name].module] = partial(_return, parts[name], _loud if loud else Handle.zeros)
    for other in (parts[name] for name in anatomy.others if not loud or is_norm(parts[name].module)):
        if other.given is not None and other.returned is not None and other.given.shape == other.returned.shape:
            found[other.module] = partial(_pass_on, other)
    return found


def _return(part: Call, make: Callable[[Handle], Tensor], *args: Any, **kwargs: Any) -> Any:
    return replace_first(part.form, make(part.returned))


def _pass_on(part: Call, *args: Any, **kwargs: Any) -> Any:
    return replace_first(part.form, tokens_given(part.module, args, kwargs).contiguous())


def _note_input(
    noted: dict[nn.Module, Tensor], module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    noted[module] = tokens_given(module, args, kwargs).clone()
    return forward(*args, **kwargs)


def _channels_last(tokens: Tensor, module: nn.Module, anatomy: Anatomy) -> Tensor:
    axis = channel_axis(module, tokens.shape, anatomy.width)
    return tokens.movedim(-1 if axis is None else axis, -1)


def _noise(like: Handle, seed: int) -> Tensor:
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return noise.to(like.device, like.dtype)


def _loud(like: Handle) -> Tensor:
    """Return noise that is large enough to show after a LayerScale of 1e-5."""
    return 1000 * _noise(like, seed=0)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and torch.equal(one.flatten(), other.flatten())


def _is_called_on(made: Tensor, taken: Tensor) -> bool:
    """Whether two modules' output and input are the same tokens, in any order of positions; windows may be padded."""
    if made.shape[-1] != taken.shape[-1]:
        return False
    x, y = (tokens.reshape(-1, made.shape[-1]).sort(0).values for tokens in (made, taken))
    return torch.equal(x, y) if x.shape == y.shape else set(x[:, 0].tolist()) <= set(y[:, 0].tolist())


def _passes(given: Tensor, taken: Tensor) -> bool:
    """Whether tokens are the same, except for a factor per channel or the order of positions (windows)."""
    if given.numel() != taken.numel():
        return False
    x, y = (tokens.reshape(-1, given.shape[-1]).double() for tokens in (given, taken))
    tolerance = 1e-4 * float(y.abs().max())
    factor = (x * y).sum(0) / x.square().sum(0).clamp(min=1e-200)
    if factor.any() and torch.allclose(factor * x, y, rtol=1e-2, atol=tolerance):
        return True
    return bool(y.any()) and torch.allclose(x.sort(0).values, y.sort(0).values, rtol=1e-2, atol=tolerance)
