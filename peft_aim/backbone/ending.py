"""What comes after the last block of a model: the final norms, the last tokens and the head."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor, nn

from peft_aim.backbone.anatomy import Anatomy
from peft_aim.backbone.candidates import Candidates
from peft_aim.backbone.resemblance import within
from peft_aim.tracing import Call, Handle, Layout, channel_axis, is_linear, is_norm, norm_width

CLASS_TOKENS = 2  # as many may join the tokens after the last block: a class token, and one for distillation


def head_of(calls: list[Call], output: Any) -> Call | None:
    """Return the call of the last linear layer, or an identity in its place, if the scores are its output."""
    scores = Handle.of(_scores(output))
    for is_kind in (is_linear, lambda module: isinstance(module, nn.Identity)):
        made = [c for c in calls if is_kind(c.module) and scores is not None and c.returned == scores]
        if made and len(scores.shape) == 2:
            return made[-1]
    return None


def _scores(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):
        return output.get("logits", next(iter(output.values()), None))
    return output


def after_blocks(calls: list[Call], blocks: set[str]) -> list[Call]:
    """Return the calls after the last block, without those inside of it."""
    last = max((position for position, call in enumerate(calls) if call.name in blocks), default=len(calls))
    return [call for call in calls[last:] if not within(call.name, blocks)]


def final_norms(after: list[Call]) -> list[Call]:
    """Return the learned norms among calls, without those that have running statistics."""
    norms = [call for call in after if is_norm(call.module) and norm_width(call.module) is not None]
    return [norm for norm in norms if not hasattr(norm.module, "running_mean")]


def on_pooled(after: list[Call]) -> tuple[str, ...]:
    """Return the names of the linear layers among calls that take one vector per image."""
    linear = [call for call in after if is_linear(call.module) and call.given is not None]
    return tuple(call.name for call in linear if len(call.given.shape) == 2)


def last_tokens(
    calls: list[Call],
    found: Candidates,
    entries: list[str],
    norms: list[Call],
    batches: dict[Call, int],
    images: int,
) -> tuple[str, Layout] | str:
    """Return whose output is the last tokens: the last norm of all tokens, otherwise the last block.

    Args:
        calls: All calls of the traced model.
        found: The blocks.
        entries: Those that tokens enter first.
        norms: The calls of the norms after the last block that the output depends on.
        batches: The batch axis of the tokens that modules are called on.
        images: Number of images in the traced batch.

    Returns:
        The name of the module and the layout of its output, or why there is no such module.
    """
    if len(entries) > 1:
        return f"its tokens take several ways at once, which begin in {' and '.join(entries)}"
    if not found.probed:
        return "none of its blocks can be adapted"
    name, (call, anatomy) = list(found.probed.items())[-1]
    kept = [c for c in calls if c.takes_tensor and c.returned is not None and c.given.shape == c.returned.shape]
    inside = [c.name for c in kept if not within(name, [c.name])]  # of an MLP that is no part of the last block
    for norm in (norm for norm in reversed(norms) if not within(norm.name, inside)):
        layout = _layout(norm, batches, images)
        if layout is None or layout.groups not in (1, anatomy.tokens.groups):  # others may be scattered
            continue
        more = _count(norm.given.shape, layout) - _count(call.given.shape, anatomy.tokens)
        if 0 <= more <= CLASS_TOKENS and norm_width(norm.module) == anatomy.width:
            return norm.name, layout
    return _tokens_after(name, call, anatomy, calls, found)


def _tokens_after(
    name: str, call: Call, anatomy: Anatomy, calls: list[Call], found: Candidates
) -> tuple[str, Layout] | str:
    """Return whose output is the tokens after the last block.

    It is the module around the last block and another one if something may follow that is no part of the block as it
    was found: the sum of a half and its input, or an MLP.
    """
    is_whole = (anatomy.attention is not None and anatomy.mlp is not None) or name in found.pairs
    if name in found.pairs:
        name, anatomy = found.pairs[name], found.seconds[found.pairs[name]]
    if is_whole and not anatomy.skip_outside:
        return name, anatomy.tokens
    blocks = {*found.probed, *found.seconds} - {name}
    around = [c for c in calls if within(name, [c.name]) and any(within(other, [c.name]) for other in blocks)]
    around = [c for c in around if c.returned is not None and c.returned.shape == call.given.shape]
    if around:
        return around[-1].name, anatomy.tokens  # the innermost
    if any(c.given == call.returned for c in calls) and not anatomy.skip_outside:
        return name, anatomy.tokens
    return f"no module returns them after {name}, whose output is only a part of what its last block does"


def _layout(norm: Call, batches: dict[Call, int], images: int) -> Layout | None:
    """Return the layout of the tokens that a norm is called on, None if they are none."""
    axis = None if norm.given is None else channel_axis(norm.module, norm.given.shape, norm_width(norm.module))
    batch = batches.get(norm)
    return None if axis is None or batch is None else Layout(batch, axis, norm.given.shape[batch] // images)


def _count(shape: tuple[int, ...], layout: Layout) -> int:
    """Return the number of tokens of an image."""
    return prod(layout.positions(shape)) * layout.groups
