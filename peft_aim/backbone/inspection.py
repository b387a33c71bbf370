"""Inspects an image model: where images enter, which blocks they pass, and where the class scores come from."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Collection, Hashable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from peft_aim.attention import USERS_KINDS
from peft_aim.backbone.anatomy import Anatomy, PartNames
from peft_aim.backbone.batch import check_batch_first, find_batch_axes
from peft_aim.backbone.candidates import Candidates
from peft_aim.backbone.ending import after_blocks, final_norms, head_of, last_tokens, on_pooled
from peft_aim.backbone.halves import Search
from peft_aim.backbone.mixing import maps_tokens
from peft_aim.backbone.probes import (
    check_alike,
    check_positions_stay,
    entries,
    ineffective,
    reaching,
    readings,
    scattered,
)
from peft_aim.backbone.quantized import check_known_storage
from peft_aim.backbone.resemblance import looks_like_a_block, within
from peft_aim.tracing import (
    Call,
    Images,
    Layout,
    blank_images,
    is_mixer,
    is_norm,
    mixes,
    runs_on,
    trace,
    traits,
    unchanged,
)

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
        modules: All modules that can have adapters, by name, in the order in which they run: the blocks, and modules
            of which only the layout of the tokens is known, which can have a convolution over time.
        convolved: Names of those that have a convolution over time unless others are asked for: blocks whose
            attention cannot run over time; in a model without any attention, the blocks.
        skipped: Blocks that are skipped because they are something else (class attention, downsampling), or because
            their attention cannot be used as temporal attention: the reason by name.
        rejected: Other blocks with attention that AIM cannot adapt: the reason by name.
        without_attention: Modules that resemble a block but have no attention: the reason by name.
        entries: The blocks with temporal attention, or without any the others, that tokens enter first, one per
            parallel trunk, each with the name of the norm between the position embedding and the block (CLIP), or
            None.
        entry_tokens: Layout of the tokens that these norms are called on, by name.
        head: Name of the last layer, whose output is the class scores, if there is one.
        features: Input width of the head.
        final_norms: Names of the norms after the last block that the output depends on.
        last_layer: The same as the head, also for a tower, whose output may be features of another width.
        on_pooled: Names of the linear layers after the last block that take one vector per image.
        last_tokens: Name of the module whose output is the last tokens, and their layout, or why there is none.
        pairs: Of blocks that consist of two modules, the name of the MLP half by that of the attention half, which
            stands for the block everywhere else.
        alone: Why an attention half has no MLP half, where a module like one follows: the reason by name.
        repeated: Names of modules that run more than once in a forward pass (ALBERT).
    """

    tower: str
    image: tuple[int, ...]
    further: dict[str, int]
    modules: dict[str, Anatomy]
    convolved: tuple[str, ...]
    skipped: dict[str, str]
    rejected: dict[str, str]
    without_attention: dict[str, str]
    entries: dict[str, str | None]
    entry_tokens: dict[str, Layout]
    head: str | None
    features: int | None
    final_norms: list[str]
    last_layer: str | None
    on_pooled: tuple[str, ...]
    last_tokens: tuple[str, Layout] | str
    pairs: dict[str, str]
    alone: dict[str, str]
    repeated: tuple[str, ...]

    @property
    def blocks(self) -> dict[str, Anatomy]:
        """The blocks that can have temporal attention, by name, in the order in which they run."""
        return {name: anatomy for name, anatomy in self.modules.items() if anatomy.attend is not None}

    @property
    def all_blocks(self) -> dict[str, Anatomy]:
        """The blocks, with those that can have a convolution over time only."""
        return {name: a for name, a in self.modules.items() if a.attend is not None or name in self.convolved}

    @property
    def left_out(self) -> dict[str, str]:
        """All blocks with attention that cannot have temporal attention: the reason by name."""
        return {**self.skipped, **self.rejected}

    @property
    def without_adapters(self) -> dict[str, str]:
        """The modules without attention that resemble a block and are not part of, or around, other blocks."""
        blocks, others = self.all_blocks, self.without_attention
        apart = [n for n in others if not within(f"{n}.", blocks) and not any(within(b, [n]) for b in blocks)]
        return {name: others[name] for name in apart}

    def first_half(self, name: str) -> str:
        """Return the attention half of the block that a module is the MLP half of, otherwise the module."""
        return next((first for first, second in self.pairs.items() if second == name), name)

    def depth(self, name: str) -> float:
        """Return where a module stands among the blocks, from 0 for the first to 1 for the last."""
        blocks, names = self.blocks or self.all_blocks, list(self.modules)
        name = self.first_half(name)
        before = sum(other in blocks for other in names[: names.index(name)])
        return min(1.0, before / max(1, len(blocks) - 1))


def inspect_backbone(model: nn.Module, names: PartNames = NO_NAMES) -> Inspection:
    """Run a model once on two blank images, and find its blocks by how they are called.

    Of blocks that are copies of each other, only one runs. The model is the same afterwards. The result is cached for
    as long as the model exists; the model is inspected again only if its structure has changed.

    Args:
        model: An image model, or a model of images and text.
        names: Names of parts inside the blocks, given by the user.

    Raises:
        ValueError: If it takes no images, or cannot be run on one.
    """
    state = traits(model), names, tuple(USERS_KINDS.items())
    before, found = _remembered.get(model, (None, None))
    if before != state:
        with unchanged(model):
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
    check_known_storage(calls)
    found, batches = Candidates(), find_batch_axes(tower, images, root)
    found.sort(calls, len(next(iter(images.values()))), batches, names)
    first_argument = next(iter(images.values()))
    runs = first_argument.device.type != "meta"
    check_alike(model, output)
    probes = runs and not (names.attention and names.mlp)  # otherwise the user has vouched for them
    if probes:
        found.note(readings(found.probed))
    blocks = {name: block for name, block in found.probed.items() if name in found.blocks}
    if runs and names == NO_NAMES:
        skipped = [name for name in found.skipped if not _is_trunk(name, calls)]
        found.join(Search(tower, images, root, batches, blocks, skipped, found.kinds).run())
    found.settle(calls)
    check_batch_first(model, output, [anatomy for _, anatomy in found.probed.values()])
    found.drop(_registered_twice(model, found.probed))
    if found.probed:
        check_positions_stay(tower, images, root, found.probed)
    if found.probed and runs:
        found.drop(scattered(tower, images, root, found.probed))
        if probes:
            found.note(readings({name: block for name, block in found.probed.items() if name not in blocks}))
        found.drop(ineffective(tower, images, root, found.probed))
    elif found.probed:
        unknown = [name for name, (_, anatomy) in found.probed.items() if anatomy.attention is None]
        found.drop(dict.fromkeys(unknown, "its parts are not known, and on the device 'meta' nothing can be checked"))
    first = _entries(tower, images, root, found) if runs else list(found.blocks or found.probed)[:1]
    before = {name: _pre_norm(calls, found.probed[name][1].norm_outside or name) for name in first}
    whole = model._modules.get("_orig_mod", model)  # inside of torch.compile's wrapper
    last_layer = head_of(calls, output)
    head = last_layer if tower is whole else None
    after = after_blocks(calls, {*found.probed, *found.seconds, *found.skipped, *found.rejected})
    norms = final_norms(after)
    norms = reaching(tower, images, root, found.probed, norms) if runs else norms
    return Inspection(
        tower=tower_name,
        image=tuple(first_argument.shape[1:]),
        further={name: argument.ndim for name, argument in list(images.items())[1:]},
        modules=found.modules(calls),
        convolved=tuple(found.convolved),
        skipped=found.skipped,
        rejected=found.rejected,
        without_attention=found.without_attention(),
        entries={name: norm and norm.name for name, norm in before.items()},
        entry_tokens={
            norm.name: replace(found.probed[name][1].tokens, batch=batches[norm])
            for name, norm in before.items()
            if norm is not None
        },
        head=head and head.name,
        features=head and head.given.shape[-1],
        last_layer=last_layer and last_layer.name,
        on_pooled=on_pooled(after),
        last_tokens=last_tokens(calls, found, first, norms, batches, len(first_argument)),
        final_norms=list(dict.fromkeys(norm.name for norm in norms)),
        pairs=found.pairs,
        alone=found.alone,
        repeated=found.repeated,
    )


def _registered_twice(model: nn.Module, blocks: Collection[str]) -> dict[str, str]:
    """Find blocks with several names, of which PEFT replaces one only."""
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    shared = {found[0]: " and ".join(found) for found in names.values() if len(found) > 1}
    return {name: f"it is one module with several names, {found}" for name, found in shared.items() if name in blocks}


def _is_trunk(name: str, calls: list[Call]) -> bool:
    """Whether a module contains modules that may be blocks."""
    return any(_may_be_a_block(call) for call in calls if within(call.name, [name]))


def _entries(tower: nn.Module, images: Images, root: Call, found: Candidates) -> list[str]:
    """Return the first blocks with temporal attention, or without any, the first of the others."""
    return entries(tower, images, root, {n: b for n, b in found.probed.items() if n in (found.blocks or found.probed)})


def _trace(model: nn.Module, tower: nn.Module) -> tuple[Images, Call, Any]:
    """Run a model on two blank images; return the images, the tree of calls and the output."""
    errors = []
    for images in blank_images(tower):
        with suppress(Exception):  # if it uses what its blocks store when they run, all of them have to
            return images, *trace(tower, images, once=_may_be_part_of_a_trunk)
        try:
            return images, *trace(tower, images)
        except Exception as error:
            errors.append((error, tuple(next(iter(images.values())).shape)))
    error, shape = errors[0]
    hint = "If its images have another size, set model.image_size = (H, W)."
    if runs_on(tower) is not None:
        hint = (
            "accelerate offloads its weights or has spread them over devices. If the model itself cannot run then "
            "either, name modules whose weights are needed at once as preload_module_classes; or adapt it first."
        )
    raise ValueError(
        f"{type(model).__name__} could not be run on a blank image {shape} to find its blocks: "
        f"{type(error).__name__}: {error}. {'' if isinstance(error, TypeError) else hint}"
    ) from error


def _may_be_part_of_a_trunk(call: Call) -> bool:
    """Whether copies of this call need not run: it may be a block, half of one, or several."""
    is_layer = is_mixer(call.module) and not isinstance(call.module, nn.MultiheadAttention)
    return maps_tokens(call) and mixes(call.module) and not is_layer


def _may_be_a_block(call: Call) -> bool:
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


def _pre_norm(calls: list[Call], first_block: str) -> Call | None:
    """Return the norm whose output enters the first block, unless it is part of the patch embedding."""
    first = next(call for call in calls if call.name == first_block)
    for call in calls[: calls.index(first)]:
        parent = call.name.rpartition(".")[0]
        around = not parent or first_block.startswith(f"{parent}.")
        if around and is_norm(call.module) and call.returned == first.given:
            return call
    return None
