"""Inspects an image model: where images enter, which blocks they pass, and where the class scores come from."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from peft_aim.attention import USERS_KINDS
from peft_aim.backbone.anatomy import Anatomy, Kinds, NotABlock, PartNames, examine, has_attention, looks_like_a_block
from peft_aim.backbone.probes import check_alike, check_positions_stay, entries, misbuilt, scattered
from peft_aim.tracing import Call, Handle, Images, blank_images, is_norm, norm_width, trace, traits

TEXT_ARGUMENTS = {"input_ids", "text"}
NO_NAMES = PartNames()


@dataclass(frozen=True)
class Inspection:
    """The structure of an image model.

    Attributes:
        tower: Name of the module that takes images: "" for the whole model, otherwise the image tower of a model that
            takes text as well.
        image: Shape of an image, (C, H, W), or of its patches, (N, F).
        further: Other required arguments (mask and grid of patches): their number of axes, by name.
        blocks: The blocks that AIM can adapt, by name, in the order in which they run.
        skipped: Blocks that are skipped because they are something else (class attention, downsampling), or because
            their attention cannot be used as temporal attention: the reason by name.
        rejected: Other blocks with attention that AIM cannot adapt: the reason by name.
        without_attention: Modules that resemble a block but have no attention: the reason by name.
        entries: The blocks that tokens enter first, one per parallel trunk, each with the name of the norm between
            the position embedding and the block (CLIP), or None.
        head: Name of the last layer, whose output is the class scores, if there is one.
        features: Input width of the head.
        final_norms: Names of the norms after the last block.
    """

    tower: str
    image: tuple[int, ...]
    further: dict[str, int]
    blocks: dict[str, Anatomy]
    skipped: dict[str, str]
    rejected: dict[str, str]
    without_attention: dict[str, str]
    entries: dict[str, str | None]
    head: str | None
    features: int | None
    final_norms: list[str]

    @property
    def left_out(self) -> dict[str, str]:
        """All blocks with attention that cannot be adapted: the reason by name."""
        return {**self.skipped, **self.rejected}


def inspect_backbone(model: nn.Module, names: PartNames = NO_NAMES) -> Inspection:
    """Run a model once on two blank images, and find its blocks by how they are called.

    Of blocks that are copies of each other, only one runs. The result is cached for as long as the model exists; the
    model is inspected again only if its structure has changed.

    Args:
        model: An image model, or a model of images and text.
        names: Names of parts inside the blocks, given by the user.

    Raises:
        ValueError: If it takes no images, cannot be run on one, or has no block that AIM can adapt.
    """
    state = traits(model), names, tuple(USERS_KINDS.items())
    before, found = _remembered.get(model, (None, None))
    if before != state:
        found = _inspect(model, names)
        _remembered[model] = (traits(model), *state[1:]), found  # running it may have changed its own caches
    return found


_remembered: WeakKeyDictionary[nn.Module, tuple[Hashable, Inspection]] = WeakKeyDictionary()


def _inspect(model: nn.Module, names: PartNames) -> Inspection:
    tower_name, tower = _tower(model)
    images, root, output = _trace(model, tower)
    calls = list(root.walk())
    for call in calls:  # names from the root of the model
        call.name = ".".join(filter(None, (tower_name, call.name)))
    found = _Found()
    found.sort(calls, 2, names)
    first_argument = next(iter(images.values()))
    runs = first_argument.device.type != "meta"
    if found.blocks:
        check_alike(model, output)
        check_positions_stay(tower, images, root, found.probed)
    if found.blocks and runs:
        found.reject(scattered(tower, images, root, found.probed))
    if found.blocks and runs and not (names.attention and names.mlp):  # the user has vouched for them
        found.reject(misbuilt(found.probed))
    if not found.blocks:
        raise ValueError(found.nothing(model))
    first = entries(tower, images, root, found.probed) if runs else list(found.blocks)[:1]
    head = _head(calls, output) if tower is model else None
    return Inspection(
        tower=tower_name,
        image=tuple(first_argument.shape[1:]),
        further={name: argument.ndim for name, argument in list(images.items())[1:]},
        blocks=found.blocks,
        skipped=found.skipped,
        rejected=found.rejected,
        without_attention=found.without_attention(),
        entries={name: _pre_norm(calls, name) for name in first},
        head=head and head.name,
        features=head and head.given.shape[-1],
        final_norms=_final_norms(calls, {*found.blocks, *found.skipped, *found.rejected}),
    )


def _trace(model: nn.Module, tower: nn.Module) -> tuple[Images, Call, Any]:
    """Run a model on two blank images; return the images, the tree of calls and the output."""
    errors = []
    for images in blank_images(tower):
        try:
            return images, *trace(tower, images, once=_may_be_a_block)
        except Exception as error:
            errors.append((error, tuple(next(iter(images.values())).shape)))
    error, shape = errors[0]
    size = "If its images have another size, set model.image_size = (H, W)."
    raise ValueError(
        f"{type(model).__name__} could not be run on a blank image {shape} to find its blocks: "
        f"{type(error).__name__}: {error}. {'' if isinstance(error, TypeError) else size}"
    ) from error


def _may_be_a_block(call: Call) -> bool:
    """Whether copies of this call need not run."""
    return looks_like_a_block(call) and call.given.shape == call.returned.shape


def _tower(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the name of the outermost module that takes images but no text, and the module."""
    path = next((name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)), "").split(".")
    for depth in range(len(path)):
        name = ".".join(path[:depth])
        module = model.get_submodule(name)
        callable_itself = type(module).forward is not nn.Module.forward
        if callable_itself and not TEXT_ARGUMENTS & set(inspect.signature(module.forward).parameters):
            return name, module
    raise ValueError(
        f"No module in {type(model).__name__} takes images only: it has no Conv2d, where images become patches, or "
        "every module around it takes text as well. Models of text or video cannot be adapted; pass an image model."
    )


class _Found:
    """Modules that resemble blocks, sorted into those that can be adapted, those to skip, and the rest."""

    def __init__(self) -> None:
        self.blocks: dict[str, Anatomy] = {}
        self.skipped: dict[str, str] = {}
        self.rejected: dict[str, str] = {}
        self.others: dict[str, str] = {}  # without attention, judging by their names
        self._calls: dict[str, Call] = {}
        self._examined: dict[Call, Anatomy | NotABlock] = {}

    @property
    def probed(self) -> dict[str, tuple[Call, Anatomy]]:
        """The blocks that can be adapted, with their traced calls."""
        return {name: (self._calls[name], anatomy) for name, anatomy in self.blocks.items()}

    def sort(self, calls: list[Call], images: int, names: PartNames) -> None:
        kinds: Kinds = {}
        for call in filter(looks_like_a_block, calls):
            if within(call.name, self.blocks):
                continue
            if call.original not in self._examined:
                self._examined[call.original] = _examined(call.original, images, names, kinds)
            anatomy = self._examined[call.original]
            self._calls[call.name] = call
            if isinstance(anatomy, Anatomy):
                self.blocks[call.name] = anatomy
                continue
            kind = self.rejected if has_attention(call) else self.others
            kind = self.skipped if anatomy.understood else kind
            kind[call.name] = str(anatomy)
        called = [call.name for call in calls]
        twice = [name for name in self.blocks if called.count(name) > 1]
        self.reject(dict.fromkeys(twice, "it runs more than once in a forward pass"))
        for kind in (self.skipped, self.rejected):  # stages, whose blocks are listed instead, and parts of blocks
            stages = [name for name in kind if any(within(block, [name]) for block in self.blocks)]
            for name in [*stages, *(name for name in kind if within(name, {*self.skipped} - {*stages}))]:
                self.others[name] = kind.pop(name)

    def reject(self, reasons: dict[str, str]) -> None:
        self.rejected.update(reasons)
        self.blocks = {name: anatomy for name, anatomy in self.blocks.items() if name not in reasons}

    def without_attention(self) -> dict[str, str]:
        """Return the innermost modules that resemble a block but have no attention."""
        known = {*self.blocks, *self.skipped, *self.rejected, *self.others}
        around = {name for name in self.others if any(within(other, [name]) for other in known)}
        return {name: reason for name, reason in self.others.items() if name not in around}

    def nothing(self, model: nn.Module) -> str:
        seen = {**self.skipped, **self.rejected} or self.others
        outermost = [name for name in seen if not within(name, seen)]
        reasons = listed({name: seen[name] for name in outermost})
        found = f"Candidates were:{reasons}" if seen else "None of its modules resembles such a block."
        return (
            f"{type(model).__name__} has no block that AIM can adapt. AIM needs x + attention(norm1(x)) followed by "
            f"x + mlp(norm2(x)), pre-norm or post-norm. {found}\nIf the parts of a block have unusual names, pass "
            "norm1_module, attention_module, norm2_module and mlp_module. If an attention needs special arguments, "
            "register a function with peft_aim.attention.along_time. Convolutional networks cannot be adapted."
        )


def _examined(call: Call, images: int, names: PartNames, kinds: Kinds) -> Anatomy | NotABlock:
    try:
        return examine(call, images, names, kinds)
    except NotABlock as reason:
        return reason


def within(name: str, others: Iterable[str]) -> bool:
    """Whether a module or parameter is part of one of the other modules, by their names.

    Example:
        >>> within("blocks.1.attn", ["blocks.1"]), within("blocks.10", ["blocks.1"])
        (True, False)
    """
    return any(name.startswith(f"{other}.") for other in others)


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


def _pre_norm(calls: list[Call], first_block: str) -> str | None:
    """Return the norm whose output enters the first block, unless it is part of the patch embedding."""
    first = next(call for call in calls if call.name == first_block)
    for call in calls[: calls.index(first)]:
        parent = call.name.rpartition(".")[0]
        around = not parent or first_block.startswith(f"{parent}.")
        if around and is_norm(call.module) and call.returned == first.given:
            return call.name
    return None


def _head(calls: list[Call], output: Any) -> Call | None:
    """Return the call of the last linear layer, or an identity in its place, if the scores are its output."""
    scores = Handle.of(_scores(output))
    for kind in (nn.Linear, nn.Identity):
        made = [c for c in calls if isinstance(c.module, kind) and scores is not None and c.returned == scores]
        if made and len(scores.shape) == 2:
            return made[-1]
    return None


def _scores(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):
        return output.get("logits", next(iter(output.values()), None))
    return output


def _final_norms(calls: list[Call], blocks: set[str]) -> list[str]:
    """Return the learned norms after the last block, without those that have running statistics."""
    last = max(position for position, call in enumerate(calls) if call.name in blocks)
    behind = [call for call in calls[last:] if is_norm(call.module) and not within(call.name, blocks)]
    return [c.name for c in behind if norm_width(c.module) is not None and not hasattr(c.module, "running_mean")]
