"""Selects which modules of an inspected backbone get which adapters, by the options of a config."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from types import SimpleNamespace

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from peft_aim.backbone import Anatomy, Inspection, listed, note_causal, outermost, within
from peft_aim.config import AIMConfig
from peft_aim.layers import BRANCHES, AIMLayer, is_decayed
from peft_aim.saving import plain, unwrapped
from peft_aim.targets.checks import (
    check_causal,
    check_embedding_is_added_once,
    check_head,
    check_modules_to_save,
)
from peft_aim.targets.names import own_names


def resolve_targets(model: nn.Module, found: Inspection, config: AIMConfig) -> None:
    """Set a config's ``branches``: which modules of a model get which adapters, by its options.

    Args:
        model: The model.
        found: Its structure.
        config: The options.

    Raises:
        ValueError: If the model cannot have what the options ask for.
    """
    config.branches = {}
    if config.has_block_adapters:
        config.branches = select_blocks(model, found, config.search_anew())
        config.note_targets(as_regex(list(config.branches)))
        if config.causal and config.temporal != "conv":
            check_causal(note_causal(model, found, _with_temporal(config)), config)
    if config.temporal_embedding == "input":
        entries = entries_of(found, list(config.branches))
        if not entries:
            raise ValueError(nothing(model, found, config))
        check_embedding_is_added_once(found, [norm or block for block, norm in entries.items()])
        for block, pre_norm in entries.items():
            config.branches.setdefault(pre_norm or block, []).append("temporal_embedding")
    check_modules_to_save(model, found, config)
    if config.num_labels:
        check_head(model, found, config)
        config.branches[found.head] = ["head"]
    if config.final_norm:
        config.branches |= {name: ["norm"] for name in found.final_norms}


def _with_temporal(config: AIMConfig) -> list[str]:
    return [name for name, has in config.branches.items() if "temporal" in has]


def branches(config: AIMConfig, anatomy: Anatomy, index: int) -> list[str]:
    """Return which adapters a block gets.

    Args:
        config: The options.
        anatomy: The parts of the block.
        index: Its index among the blocks that the options can adapt.
    """
    wanted = {
        "temporal": config.temporal and not anatomy.is_mlp_half and _has_temporal(config.temporal_layers, index),
        "spatial": config.spatial and anatomy.attention is not None,
        "joint": config.joint and anatomy.mlp is not None,
    }
    return [name for name in BRANCHES if wanted[name]]


def _has_temporal(layers: str | int | list[int] | None, index: int) -> bool:
    if layers in ("even", "odd"):
        return index % 2 == ("even", "odd").index(layers)
    return layers is None or index in _indices(layers)


def _indices(layers: str | int | list[int] | None) -> list[int]:
    """Return the indices of blocks that an option gives; "even", "odd" and None give none."""
    return [layers] if isinstance(layers, int) else layers if isinstance(layers, list) else []


def adaptable(found: Inspection, config: AIMConfig) -> dict[str, Anatomy]:
    """Return the blocks that can have what the options ask for, in the order in which they run."""
    return found.all_blocks if config.may_convolve else found.blocks


def adapted_blocks(model: nn.Module, adapter_name: str) -> list[str]:
    """Return the names, in the backbone, of the blocks that have bottlenecks of an adapter."""
    return [
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, AIMLayer) and any(module.has(adapter_name, branch) for branch in BRANCHES)
    ]


def entries_of(found: Inspection, adapted: list[str]) -> dict[str, str | None]:
    """Return where a temporal embedding is added: the first block, or an adapted module that runs before it.

    Returns:
        Names of modules, each with the name of the norm before it that adds the embedding, if there is one.
    """
    names = list(found.modules)
    first = min(adapted, key=names.index, default=None)
    if first is not None and all(names.index(first) < names.index(entry) for entry in found.entries):
        return {first: None}
    return found.entries


def select_blocks(model: nn.Module, found: Inspection, config: AIMConfig) -> dict[str, list[str]]:
    """Apply ``target_modules``, ``exclude_modules``, ``layers_to_transform`` and ``temporal_layers``.

    Returns:
        Which adapters each selected block gets, by its name.

    Raises:
        ValueError: If a target is not a block, if some blocks cannot be adapted and ``target_modules`` is not given,
            or if no block is left.
    """
    blocks = adaptable(found, config)
    if config.target_modules is not None:
        targets = _targets(model, found, config)
    elif blocks:
        _check_all_are_adaptable(model, found, blocks)
        targets = [*blocks, *(second for first, second in found.pairs.items() if first in blocks)]
    else:
        raise ValueError(nothing(model, found, config))
    firsts = {found.first_half(name) for name in {*blocks, *targets}}
    names = [name for name in found.modules if name in firsts]
    index = {name: names.index(found.first_half(name)) for name in targets}
    _check_indices(model, len(names), config)
    layers = _indices(config.layers_to_transform) or range(len(names))
    selected = [name for name in targets if not _matches(config.exclude_modules, name) and index[name] in layers]
    wanted = {name: branches(config, found.modules[name], index[name]) for name in selected}
    _say_which_halves_are_alone(found, config, selected)
    if not any(wanted.values()):
        raise ValueError(
            f"No block is left: target_modules={config.target_modules!r}, exclude_modules={config.exclude_modules!r}, "
            f"layers_to_transform={config.layers_to_transform!r} and temporal_layers={config.temporal_layers!r} "
            f"together exclude all of {as_regex(list(blocks))!r}."
        )
    return {name: has for name, has in wanted.items() if has}


def _say_which_halves_are_alone(found: Inspection, config: AIMConfig, selected: list[str]) -> None:
    """Warn about halves of blocks that are selected without the other half, which would have adapters as well."""
    pairs = [pair for pair in found.pairs.items() if len({*pair} & {*selected}) == 1]
    alone = {}
    for half, other in (pair if pair[0] in selected else pair[::-1] for pair in pairs):
        if branches(config, found.modules[other], 0):
            alone[half] = f"{other}, the other half, is left out"
    if config.target_modules is None and config.joint:
        unpaired = [n for n in selected if found.modules[n].attention is not None and found.modules[n].mlp is None]
        alone |= {n: found.alone.get(n, "no MLP that follows it was found") for n in unpaired if n not in found.pairs}
    if alone:
        warnings.warn(
            f"AIM adapts only one half of {len(alone)} blocks:{listed(alone)}\nA block that consists of two modules, "
            "one with attention and one with the MLP, has adapters in both. Select both in target_modules and "
            "exclude_modules.",
            stacklevel=3,
        )


def _check_all_are_adaptable(model: nn.Module, found: Inspection, blocks: dict[str, Anatomy]) -> None:
    """Warn about blocks that are skipped, and raise an error if it is not understood why they have to be."""
    has_attention = found.blocks or found.left_out
    possible = found.skipped if has_attention else found.without_adapters
    skipped = {name: reason for name, reason in possible.items() if name not in blocks}
    rejected = {name: reason for name, reason in found.rejected.items() if name not in blocks}
    names = as_regex(list(blocks))
    others = {*skipped, *rejected} & {*found.convolved}
    hint = "\nTo give these a convolution over time instead of temporal attention, pass temporal='auto'."
    if rejected:
        raise ValueError(
            f"AIM can adapt {len(blocks)} blocks of {type(model).__name__}, but not these:"
            f"{listed({**skipped, **rejected})}\nTo adapt only the others, pass target_modules={names!r}."
            f"{hint if others else ''}"
        )
    if skipped:
        kind = "with" if has_attention else "without"
        warnings.warn(
            f"AIM adapts {len(blocks)} of {len(blocks) + len(skipped)} blocks {kind} attention of "
            f"{type(model).__name__} and skips these:"
            f"{listed(skipped)}\nIf that is intended, pass target_modules={names!r}.{hint if others else ''}",
            stacklevel=2,
        )


def nothing(model: nn.Module, found: Inspection, config: AIMConfig) -> str:
    """Return the message for a model without any block that the options can adapt."""
    seen = found.left_out or found.without_attention
    candidates = listed({name: seen[name] for name in outermost(seen)})
    observed = f"Candidates were:{candidates}" if seen else "None of its modules resembles such a block."
    if not found.modules:
        return (
            f"{type(model).__name__} has no block that AIM can adapt. {observed}\nNone of its modules maps tokens to "
            "tokens of the same shape, so a convolution over time is not possible either. Use another backbone."
        )
    if config.may_convolve:
        known = as_regex(outermost(found.modules)[:8])
        return (
            f"{type(model).__name__} has no block that AIM can adapt by itself. {observed}\nGive target_modules, "
            f"names of modules that map tokens to tokens: {known!r}, for example."
        )
    others = as_regex(list(found.convolved)) if found.convolved else "modules that you name with target_modules"
    instead = (
        f" To do without attention over time, pass temporal='auto', which adapts {others} by a convolution."
        if config.temporal
        else ""
    )
    return (
        f"{type(model).__name__} has no block that AIM can adapt. AIM needs x + attention(norm1(x)) followed by "
        f"x + mlp(norm2(x)), pre-norm or post-norm. {observed}\nIf the parts of a block have unusual names, pass "
        "norm1_module, attention_module, norm2_module and mlp_module. If an attention needs special arguments, "
        f"register a function with peft_aim.attention.along_time.{instead}"
    )


def _targets(model: nn.Module, found: Inspection, config: AIMConfig) -> list[str]:
    """Return the blocks that ``target_modules`` matches; a convolution can be asked for in any module of tokens."""
    blocks = adaptable(found, config)
    possible = found.modules if config.may_convolve else {*blocks, *found.pairs.values()}
    named = own_names(model)
    matched = [name for name in dict.fromkeys(name for name, _ in named) if _matches(config.target_modules, name)]
    wrong = [name for name in matched if name not in possible]
    if wrong or not matched:
        what = f"{', '.join(wrong[:4])}, which AIM cannot adapt as a block" if wrong else "no module"
        known = {**found.without_attention, **found.left_out}
        reasons = listed({name: known[name] for name in wrong if name in known})
        others = [name for name in outermost(found.modules) if name not in blocks]
        a = "A" if config.may_convolve else "With temporal='auto', a"
        convolved = f" {a} convolution over time is possible in {as_regex(others[:8])!r} as well."
        kind = type(model).__name__
        known = (
            f"The blocks of this {kind} are {as_regex(list(blocks))!r}." if blocks else f"This {kind} has no block."
        )
        raise ValueError(
            f"target_modules={config.target_modules!r} matches {what}.{reasons}\n{known}"
            f"{convolved if others and config.temporal else ''}"
        )
    adapted = {name for name, module in named if isinstance(module, AIMLayer)}
    for name in matched:
        around = [other for other in {*matched, *adapted} if within(name, [other]) or within(other, [name])]
        if around:
            kind = "adapted by another adapter" if around[0] in adapted else "matched as well"
            raise ValueError(
                f"target_modules={config.target_modules!r} matches {name}, but {around[0]}, which overlaps with it, "
                f"is {kind}. Give one of the two."
            )
    return [name for name in found.modules if name in matched]


def _check_indices(model: nn.Module, count: int, config: AIMConfig) -> None:
    """Check that the indices of blocks exist."""
    for option in ("layers_to_transform", "temporal_layers"):
        layers = getattr(config, option)
        indices = _indices(layers)
        if max(indices, default=0) >= count:
            raise ValueError(
                f"{option}={layers} selects block {max(indices)}, but {type(model).__name__} has {count} blocks, 0 to "
                f"{count - 1}."
            )


def _matches(patterns: str | set[str] | None, name: str) -> bool:
    """Match a name against a regular expression or a set of suffixes, as PEFT does."""
    wanted = SimpleNamespace(target_modules=patterns)
    return patterns is not None and bool(check_target_module_exists(wanted, unwrapped(name)))


def whole_classes(model: nn.Module) -> set[str]:
    """Return the names of the classes whose modules are to be sharded, or put on a device, as a whole.

    They are those that the backbone names itself, with adapted blocks instead of blocks: adapters call a block's parts
    while the block does not run.
    """
    layers = [module for module in model.modules() if isinstance(module, AIMLayer)]
    blocks = {type(layer.base_layer).__name__ for layer in layers}
    return {*(getattr(model, "_no_split_modules", None) or ())} - blocks | {AIMLayer.__name__ for _ in layers[:1]}


def not_decayed(model: nn.Module) -> list[str]:
    """Return the names of the parameters without weight decay: temporal ones, and what the backbone names itself."""
    own = {plain(name) for name in getattr(model, "no_weight_decay", set)()}
    return [name for name, _ in model.named_parameters() if plain(name) in own or not is_decayed(name)]


def as_regex(names: list[str]) -> str:
    """Return one regular expression that matches all names, grouped by their parents, compiled or not."""
    groups = defaultdict(list)
    for name in map(unwrapped, names):
        parent, _, last = name.rpartition(".")
        groups[parent].append(re.escape(last))
    return "|".join(
        (f"{re.escape(parent)}\\." if parent else "") + (f"({'|'.join(last)})" if len(last) > 1 else last[0])
        for parent, last in groups.items()
    )
