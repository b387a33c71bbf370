"""Sorts the modules that resemble blocks: which can have temporal attention, which a convolution over time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection

from peft_aim.backbone.anatomy import Anatomy, NotABlock, PartNames
from peft_aim.backbone.halves import Halves
from peft_aim.backbone.layout import layout
from peft_aim.backbone.parts import Kinds, examine
from peft_aim.backbone.resemblance import has_attention, looks_like_a_block, within
from peft_aim.tracing import Call


class Candidates:
    """Modules that resemble blocks, sorted by what they can have.

    Attributes:
        blocks: Those that can have temporal attention, by name.
        convolved: Those that can only have a convolution over time: their attention cannot run over time, or the model
            has no attention.
        skipped: Why others are left out, where that is safe: class attention, downsampling.
        rejected: Why others with attention cannot have temporal attention.
        others: Why others are no such blocks; judging by their names, they have no attention.
        seconds: The MLP halves of blocks that consist of two modules.
        pairs: The name of the MLP half by that of the block, which is the attention half.
        alone: Why an attention half has no MLP half, where a module like one follows.
        repeated: Modules that run more than once in a forward pass.
        kinds: The kinds of the attentions inspected so far.
    """

    def __init__(self) -> None:
        self.blocks: dict[str, Anatomy] = {}
        self.convolved: dict[str, Anatomy] = {}
        self.skipped: dict[str, str] = {}
        self.rejected: dict[str, str] = {}
        self.others: dict[str, str] = {}
        self.seconds: dict[str, Anatomy] = {}
        self.pairs: dict[str, str] = {}
        self.alone: dict[str, str] = {}
        self.repeated: tuple[str, ...] = ()
        self.kinds: Kinds = {}
        self._calls: dict[str, Call] = {}
        self._images, self._batches = 0, {}
        self._dropped: set[str] = set()
        self._mixing: set[str] = set()
        self._examined: dict[Call, Anatomy | NotABlock] = {}

    @property
    def probed(self) -> dict[str, tuple[Call, Anatomy]]:
        """The blocks that can be adapted in any way, in the order in which they run, with their traced calls."""
        found = {**self.blocks, **self.convolved}
        return {name: (call, found[name]) for name, call in self._calls.items() if name in found}

    def sort(self, calls: list[Call], images: int, batches: dict[Call, int], names: PartNames) -> None:
        """Sort the calls that resemble blocks.

        Args:
            calls: All calls of the traced model.
            images: Number of images in the traced batch.
            batches: The batch axis of the tokens that they take; calls without one are left out.
            names: Names of parts inside the blocks, given by the user.
        """
        self._images, self._batches = images, batches
        for call in filter(looks_like_a_block, calls):
            if within(call.name, self.blocks):
                continue
            if call.original not in self._examined:
                batch = batches.get(call.original)
                self._examined[call.original] = _examined(call.original, images, batch, names, self.kinds)
            anatomy = self._examined[call.original]
            self._calls[call.name] = call
            if isinstance(anatomy, Anatomy):
                self.blocks[call.name] = anatomy
                continue
            kind = self.rejected if has_attention(call) else self.others
            kind = self.skipped if anatomy.understood else kind
            kind[call.name] = str(anatomy)

    def note(self, readings: dict[str, Anatomy | str]) -> None:
        """Note how blocks are built, and why others are no blocks."""
        for kind in (self.blocks, self.convolved):
            kind |= {name: readings[name] for name in kind if isinstance(readings.get(name), Anatomy)}
        self.reject({name: found for name, found in readings.items() if isinstance(found, str)})

    def join(self, halves: Halves) -> None:
        """Add the halves of blocks that consist of two modules."""
        self.seconds = {name: anatomy for name, (_, anatomy) in halves.seconds.items()}
        self.pairs, self.alone = halves.pairs, halves.alone
        self.blocks |= {name: anatomy for name, (_, anatomy) in halves.firsts.items()}
        found = {*self.blocks, *self.seconds}
        attends = any(reason.attends for reason in halves.reasons.values())
        attends = attends or bool(self.blocks or self.skipped or self.rejected)
        for kind in (self.skipped, self.rejected):
            for name in [*kind]:
                if name in found:
                    del kind[name]
                elif _is_around(name, halves):  # a trunk; its other mixers are listed
                    self.others[name] = kind.pop(name)
        if attends:  # not a model that mixes tokens in other ways only
            known = {*found, *self.skipped, *self.rejected}
            mixing = {n: str(why) for n, why in halves.reasons.items() if not within(f"{n}.", known)}
            self.rejected |= mixing
            self._mixing = {*mixing}
        for name in [name for name in self.others if within(f"{name}.", {*found, *self.rejected})]:
            del self.others[name]

    def settle(self, calls: list[Call]) -> None:
        """Sort the rest, when all blocks have been found."""
        names = [call.name for call in calls]
        sorted_ = {*self.blocks, *self.skipped, *self.rejected, *self.others}
        self._calls = {call.name: self._calls.get(call.name, call) for call in calls if call.name in sorted_}
        for kind in (self.skipped, self.rejected):  # stages, whose blocks are listed instead, and parts of blocks
            around = [name for name in kind if any(within(block, [name]) for block in self.blocks)]
            stages = [name for name in around if name not in self._mixing]  # those that mix positions themselves stay
            for name in [*stages, *(name for name in kind if within(name, {*self.skipped} - {*stages}))]:
                self.others[name] = kind.pop(name)
        self.convolved = self._to_convolve()
        runs = Counter(names)
        self.repeated = tuple(name for name in names if runs[name] > 1)
        again = [name for name in self.blocks if runs[name] > 1]
        shapes = {name: {str(call.given.shape) for call in calls if call.name == name} for name in again}
        several = {name: " and ".join(sorted(given)) for name, given in shapes.items() if len(given) > 1}
        self.drop({name: f"it runs on tokens {given} in one forward pass" for name, given in several.items()})

    def _to_convolve(self) -> dict[str, Anatomy]:
        """Return the blocks whose attention cannot run over time; in a model without attention, all its blocks."""
        left_out = {**self.skipped, **self.rejected}
        names = outermost([name for name in left_out if not any(within(block, [name]) for block in self.blocks)])
        if not left_out and not self.blocks:
            names = _without_stages({name: self._calls[name] for name in self.others})
        found = {name: self._known(self._calls[name]) or self._layout(self._calls[name]) for name in names}
        return {name: anatomy for name, anatomy in found.items() if anatomy is not None}

    def _known(self, call: Call) -> Anatomy | None:
        """Return the parts of a block whose attention cannot run over time, if they are all that is known."""
        found = self._examined.get(call.original)
        return found.known if isinstance(found, NotABlock) and has_attention(call) else None

    def _layout(self, call: Call) -> Anatomy | None:
        return layout(call, self._images, self._batches.get(call))

    def reject(self, reasons: dict[str, str]) -> None:
        """Note why blocks cannot have temporal attention, of which only the layout of the tokens is certain then."""
        for name, reason in reasons.items():
            if self.blocks.pop(name, None) is not None:
                self.rejected[name] = reason
            self.convolved.pop(name, None)
            anatomy = self._layout(self._calls[name])
            if anatomy is not None:
                self.convolved[name] = anatomy

    def drop(self, reasons: dict[str, str]) -> None:
        """Note why blocks can have no adapters at all."""
        self._dropped |= reasons.keys()
        for name, reason in reasons.items():
            self.convolved.pop(name, None)
            if self.blocks.pop(name, None) is not None:
                self.rejected[name] = reason
            for kind in (self.skipped, self.rejected, self.others):
                if kind.get(name, reason) != reason:
                    kind[name] += f"; {reason}"

    def modules(self, calls: list[Call]) -> dict[str, Anatomy]:
        """Return all modules that can have adapters, in the order in which they run."""
        blocks, found = {**self.blocks, **self.convolved, **self.seconds}, {}
        around = {name.rsplit(".", depth)[0] for name in blocks for depth in range(1, name.count(".") + 1)}
        never = {"", *around, *self._dropped}
        layouts: dict[Call, Anatomy | None] = {}
        for call in calls:
            if call.name in blocks:
                found[call.name] = blocks[call.name]
            elif call.name not in never and not within(call.name, blocks):
                if call.original not in layouts:
                    layouts[call.original] = self._layout(call.original)
                anatomy = layouts[call.original]
                if anatomy is not None and anatomy.tokens.groups == 1:  # groups may be scattered
                    found[call.name] = anatomy
        return found

    def without_attention(self) -> dict[str, str]:
        """Return the innermost modules that resemble a block but have no attention."""
        known = {*self.blocks, *self.skipped, *self.rejected, *self.others}
        around = {name for name in self.others if any(within(other, [name]) for other in known)}
        return {name: reason for name, reason in self.others.items() if name not in around}


def outermost(names: Collection[str]) -> list[str]:
    """Return the modules that are not part of another one, by their names.

    Example:
        >>> outermost(["stages.0", "stages.0.norm", "head"])
        ['stages.0', 'head']
    """
    return [name for name in names if not within(name, names)]


def _is_around(name: str, halves: Halves) -> bool:
    """Whether a module contains attention halves, or holds lists with several attentions that are no halves."""
    others = [half for half in halves.reasons if within(half, [name]) and half.rpartition(".")[0] != name]
    return any(within(half, [name]) for half in halves.firsts) or len(others) > 1


def _without_stages(calls: dict[str, Call]) -> list[str]:
    """Return the outermost of modules that resemble blocks, except those with several like blocks inside."""

    def is_stage(name: str) -> bool:
        inside = [type(call.module) for other, call in calls.items() if within(other, [name])]
        return any(inside.count(kind) > 1 for kind in inside)

    return outermost([name for name in calls if not is_stage(name)])


def _examined(call: Call, images: int, batch: int | None, names: PartNames, kinds: Kinds) -> Anatomy | NotABlock:
    try:
        return examine(call, images, batch, names, kinds)
    except NotABlock as reason:
        return reason


def listed(reasons: dict[str, str]) -> str:
    """Return lines with the names of blocks, grouped by reason.

    Example:
        >>> print(listed({"a": "too small", "b": "too small", "c": "too large"}))
        <BLANKLINE>
          a, b: too small
          c: too large
    """
    blocks = defaultdict(list)
    for name, reason in reasons.items():
        blocks[reason].append(name)
    lines = [
        f"\n  {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}: {reason}"
        for reason, names in blocks.items()
    ]
    more = f"\n  ... and {len(lines) - 8} other reasons" if len(lines) > 8 else ""
    return "".join(lines[:8]) + more
