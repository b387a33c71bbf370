"""Finds blocks that are not one module but two, an attention half and an MLP half, called one after the other.

A half either has a skip connection inside, ``x + attention(norm(x))``, or its caller adds its output to its input. The
attention is found by running the model (:mod:`peft_aim.backbone.mixing`), whatever it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from peft_aim.backbone.anatomy import Anatomy, NotABlock, PartNames
from peft_aim.backbone.mixing import maps_tokens, mixers
from peft_aim.backbone.parts import (
    Kinds,
    batch_axis,
    check_attends_to_itself,
    inside,
    is_pointwise,
    kind_over_time,
    mixing_norm,
    mlp_among,
    token_width,
)
from peft_aim.backbone.resemblance import within
from peft_aim.backbone.skeleton import OUTPUT, Blocks, run_skeleton
from peft_aim.backbone.sums import Callers, Skip
from peft_aim.tracing import (
    Call,
    Images,
    Layout,
    channel_axis,
    first_tensor,
    is_mixer,
    is_norm,
    mixes,
    replace_first,
    running,
    standing_in,
)

SO = ", so it would not add a temporal branch either; one can be added before a block that is a module of its own"


@dataclass
class Halves:
    """The halves of blocks.

    Attributes:
        firsts: The attention halves, with their traced calls, by name.
        seconds: The MLP halves.
        pairs: The name of the MLP half that follows an attention half.
        reasons: Why other modules that mix spatial positions are no such halves.
        alone: Why the module behind an attention half, by the name of that, is no MLP half.
    """

    firsts: dict[str, tuple[Call, Anatomy]] = field(default_factory=dict)
    seconds: dict[str, tuple[Call, Anatomy]] = field(default_factory=dict)
    pairs: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, NotABlock] = field(default_factory=dict)
    alone: dict[str, str] = field(default_factory=dict)


class Search:
    """A search for halves outside of known blocks.

    Args:
        tower: The part of the model that takes images.
        images: Its arguments.
        root: Its traced call.
        batches: The batch axis of the tokens that modules take, by call.
        blocks: The blocks that are one module, with their traced calls, by name; those without an MLP may be attention
            halves as well.
        skipped: The names of those that are skipped.
        kinds: The kinds of the attentions inspected so far.
    """

    def __init__(
        self,
        tower: nn.Module,
        images: Images,
        root: Call,
        batches: Mapping[Call, int],
        blocks: Blocks,
        skipped: Collection[str],
        kinds: Kinds,
    ) -> None:
        self._model, self._batches = (tower, images, root), batches
        self._blocks, self._known, self._kinds = blocks, {*blocks, *skipped}, kinds
        self._callers = Callers(*self._model)
        self._parent = {child: call for call in root.walk() for child in call.children}
        axes = {call.given.shape: anatomy.tokens.channels for call, anatomy in blocks.values()}
        self._mixers = mixers(root, lambda call: call.name in self._known, axes)

    def run(self) -> Halves:
        """Find all halves."""
        found = Halves()
        failed = self._find_firsts(found, self._mixers)
        around = [self._parent[call] for call in failed if call in self._parent]
        several = [call for call in dict.fromkeys(around) if around.count(call) > 1 and maps_tokens(call)]
        self._find_firsts(found, several)  # attentions in parallel, of which the sum is added
        for name in [*found.reasons]:
            if within(name, found.firsts) or name in {call.name for call in several}:
                del found.reasons[name]
        alone = {name: block for name, block in self._blocks.items() if block[1].mlp is None}
        self._find_seconds(found, {**alone, **found.firsts})
        self._drop_incomplete(found)
        return found

    def _drop_incomplete(self, found: Halves) -> None:
        """Leave out attentions that get the output of a norm of their caller, unless each has its MLP half."""
        outside = {name: anatomy for name, (_, anatomy) in found.firsts.items() if anatomy.norm_outside is not None}
        if {*outside} <= {*found.pairs}:
            return
        for name, anatomy in outside.items():
            del found.firsts[name]
            found.seconds.pop(found.pairs.pop(name, ""), None)
            why = found.alone.pop(name, "a module that is no such half follows one like it")
            why = f"it mixes spatial positions after its caller's {anatomy.norm_outside}, but has no MLP half: {why}"
            found.reasons[name] = NotABlock(why, known=anatomy)

    def _find_firsts(self, found: Halves, attentions: list[Call]) -> list[Call]:
        """Find the attention halves with these attentions; return the attentions that have none."""
        chosen = {attention: [*self._around(attention)] for attention in attentions}
        skipping = {a: next((call for call in chain if _has_skip(call, a)), None) for a, chain in chosen.items()}
        outside = self._added([[*reversed(chain)] for a, chain in chosen.items() if chain and not skipping[a]])
        failed = []
        for attention, chain in chosen.items():
            half = skipping[attention] or next((call for call in chain if call in outside), None)
            try:
                if half is None:
                    known = self._attention_half(attention, attention, Skip())
                    raise NotABlock(f"{self._callers.why_not((chain or [attention])[-1])}{SO}", known=known)
                found.firsts[half.name] = half, self._attention_half(half, attention, outside.get(half))
            except NotABlock as reason:
                why = f"it mixes spatial positions, but {reason}"
                found.reasons[attention.name] = NotABlock(why, known=reason.known)
                failed.append(attention)
        return failed

    def _around(self, attention: Call) -> Iterator[Call]:
        """Iterate over an attention and the modules around it that have no other layers."""
        call = attention
        while call is not None and maps_tokens(call) and call.given.shape == attention.given.shape:
            layers = [part for part in call.walk() if is_mixer(part.module)]
            if not {*layers} <= {*attention.walk()}:
                return
            yield call
            call = self._parent.get(call)

    def _added(self, chains: list[list[Call]]) -> dict[Call, Skip]:
        """Return of each chain the outermost module whose output its caller adds to its input, and how."""
        found: dict[Call, Skip] = {}
        while chains:
            now = self._callers.skips([chain[0] for chain in chains])
            found |= now
            chains = [chain[1:] for chain in chains if chain[0] not in now and len(chain) > 1]
        return found

    def _attention_half(self, half: Call, attention: Call, skip: Skip | None) -> Anatomy:
        norms = [part for part in half.walk() if is_norm(part.module) and part not in {*attention.walk()}]
        before = [norm for norm in norms if norm.returned == attention.given]
        behind = [norm for norm in norms if norm.given == attention.returned]
        norm1 = next(iter(before or behind), None)
        if len(norms) > 1:
            names = ", ".join(inside(half, norm) for norm in norms)
            raise NotABlock(f"it calls more than one norm outside of its attention: {names}")
        width = token_width(half, norm1, attention)
        axis = channel_axis(half.module, half.given.shape, width)
        if axis is None:
            raise NotABlock(f"it is called on tokens {half.given.shape}, but its token width is {width}")
        if norm1 is not None and (mixing := mixing_norm(half, norm1, width)):
            raise NotABlock(mixing)
        tokens = self._layout(half, axis)
        check_attends_to_itself(attention, width, batch_axis(attention, half, tokens.batch))
        known = Anatomy(
            norm1 and inside(half, norm1),
            inside(half, attention),
            *(None, None, None),
            width=width,
            attend=None,
            norm_first=not behind or bool(before),
            tokens=tokens,
            norm_tokens=replace(tokens, groups=1),
            attention_tokens=replace(tokens, batch=batch_axis(attention, half, tokens.batch), groups=1),
            **_outside(skip),
        )
        try:
            attend, output = kind_over_time(attention, known.attention_tokens, width, self._kinds)
        except ValueError as reason:
            raise NotABlock(str(reason), known=known) from reason
        return replace(known, attend=attend, output=output)

    def _layout(self, half: Call, channels: int) -> Layout:
        batch = self._batches.get(half)
        if batch is None:
            raise NotABlock(f"no axis of its tokens {half.given.shape} is the batch of images")
        return Layout(batch, channels, half.given.shape[batch] // self._model[2].given.shape[0])

    def _find_seconds(self, found: Halves, firsts: dict[str, tuple[Call, Anatomy]]) -> None:
        """Find the MLP half of each attention half: the next module with layers that its caller calls."""
        after = self._mlps({name: call for name, (call, _) in firsts.items()})
        inner = {call for call in after.values() if _has_skip(call, None)}
        known = [call for call, _ in firsts.values()]  # which need not run either
        outside = self._added([[call] for call in (*known, *after.values()) if call not in inner])
        for name, call in after.items():
            try:
                if call not in {*inner, *outside}:
                    raise NotABlock(self._callers.why_not(call))
                half = call, _mlp_half(call, firsts[name][1], outside.get(call))
                if call.given.shape != firsts[name][0].given.shape:
                    self._check_matters(*half)
                found.seconds[call.name] = half
                found.pairs[name] = call.name
            except NotABlock as reason:
                found.alone[name] = f"{call.name} follows, but {reason}"
        for name in firsts.keys() - after.keys():
            if (why := self._why_none(firsts[name][0])) is not None:
                found.alone[name] = why

    def _check_matters(self, call: Call, anatomy: Anatomy) -> None:
        """Check that the model's output depends on that of a half, which the last one without class token has not."""
        if not run_skeleton(*self._model, {call.name: (call, anatomy)}, marked=call.name)[OUTPUT].any_marked:
            raise NotABlock("its output does not reach that of the model")

    def _mlps(self, firsts: dict[str, Call]) -> dict[str, Call]:
        """Return what may be the MLP half behind each attention half, or before each if the caller begins with it."""
        found: dict[str, Call] = {}
        for caller in dict.fromkeys(self._parent.get(call) for call in firsts.values()):
            own = {name: call for name, call in firsts.items() if self._parent.get(call) is caller}
            behind, before = ({name: self._next(call, step) for name, call in own.items()} for step in (1, -1))
            begins_with_mlp = None in behind.values() and None not in before.values()
            found |= {name: mlp for name, mlp in (before if begins_with_mlp else behind).items() if mlp is not None}
        return found

    def _why_none(self, call: Call) -> str | None:
        """Return what follows an attention half in place of an MLP half, if it is a layer or several."""
        layer = self._following(call)
        if layer is None or None in (layer.given, layer.returned) or layer.given.shape == layer.returned.shape:
            return None
        return f"{layer.name} follows, but it maps tokens {layer.given.shape} to {layer.returned.shape}"

    def _following(self, call: Call, step: int = 1) -> Call | None:
        """Return the next module with layers that the caller of a module calls, or with step -1 the one before."""
        calls = self._parent[call].children[::step] if call in self._parent else [call]
        return next((part for part in calls[calls.index(call) + 1 :] if mixes(part.module)), None)

    def _next(self, call: Call, step: int) -> Call | None:
        """Return the next module with layers that the caller calls, or the one before, if it may be an MLP half."""
        after = self._following(call, step)
        if after is None or not maps_tokens(after) or not _maps_some_of(call, after):
            return None
        others = {*self._mixers, *(part for part in after.walk() if part.name in self._known)}
        return after if others.isdisjoint(after.walk()) and is_pointwise(after) else None


def _maps_some_of(call: Call, after: Call) -> bool:
    """Whether a module takes the tokens of another, perhaps without its class token or registers."""
    if len(call.given.shape) != len(after.given.shape) or len(call.given.shape) != 3:
        return call.given.shape == after.given.shape
    differ = [own >= other for own, other in zip(call.given.shape, after.given.shape, strict=True) if own != other]
    return differ in ([], [True]) and call.given.shape[-1] == after.given.shape[-1]


def _outside(skip: Skip | None) -> dict[str, Any]:
    """Return the attributes of a half's anatomy that tell what its caller does."""
    if skip is None:
        return {}
    norm, end = (call and call.name for call in (skip.norm, skip.end))
    return {"skip_outside": True, "norm_outside": norm, "end_outside": end}


def _mlp_half(half: Call, first: Anatomy, skip: Skip | None) -> Anatomy:
    """Return the anatomy of an MLP half: the joint adapter gets the output of its norm, if there is one."""
    mlp = half
    while inner := _only_branch(mlp, half):
        mlp = inner
    norm2 = _called_first(half, mlp) or _called_first(mlp, None)
    end = mlp
    if mlp is half and skip is None:
        norm2, mlp, end = mlp_among(half.parts, True, PartNames())
    axis = channel_axis(half.module, half.given.shape, first.width)
    if mlp is None or axis is None:
        raise NotABlock(f"it has no MLP that maps tokens of width {first.width}")
    parts = (norm2 and inside(half, norm2), inside(half, mlp), inside(half, end))
    tokens = replace(first.tokens, channels=axis)
    kept = {"width": first.width, "tokens": tokens, "mlp_tokens": replace(tokens, groups=1)}
    return Anatomy(None, None, *parts, attend=None, **_outside(skip), **kept)


def _called_first(call: Call, before: Call | None) -> Call | None:
    """Return the norm that a module, but not one of its parts, calls on the module's own input."""
    parts = [part for part in call.walk() if before is None or part not in {*before.walk()}]
    norms = [part for part in parts if is_norm(part.module) and part.given == call.given]
    return next((norm for norm in norms if norm.returned and norm.returned.shape == call.given.shape), None)


def _only_branch(call: Call, half: Call) -> Call | None:
    """Return the only part with layers, if it maps tokens as the whole half does."""
    inner = [child for child in call.children if mixes(child.module)]
    alone = len(inner) == 1 and maps_tokens(inner[0]) and inner[0].given.shape == half.given.shape
    return inner[0] if alone and not is_mixer(inner[0].module) else None


@torch.no_grad()
def _has_skip(call: Call, attention: Call | None) -> bool:
    """Whether a module returns its input where its attention and all its layers and norms return zeros."""
    silent = [part for part in call.walk() if is_norm(part.module) or is_mixer(part.module)]
    silent = [part for part in (*silent, attention) if part is not None and part.returned is not None]
    if call in silent or call.given.device.type == "meta":
        return False

    def zeros(part: Call) -> Callable[..., object]:
        return lambda *args, **kwargs: replace_first(part.form, part.returned.zeros())

    x = torch.randn(call.given.shape, generator=torch.Generator().manual_seed(1))
    x = x.to(call.given.device, call.given.dtype)
    with running(call.module, training=False), standing_in({part.module: zeros(part) for part in silent}):
        try:
            return torch.equal(first_tensor(call.again(x.clone())), x)
        except Exception:  # a foreign module may not run alone
            return False
