"""Selects which modules of an inspected backbone get which adapters, by the options of a config."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from types import SimpleNamespace

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from torch import nn

from peft_aim.backbone import Anatomy, Inspection, PartNames, check_own_code_and_weights, listed, outermost, within
from peft_aim.config import AIMConfig
from peft_aim.layers import BRANCHES, AIMLayer, AIMTunerLayer, is_decayed
from peft_aim.saving import plain, unwrapped


def branches(config: AIMConfig, anatomy: Anatomy, index: int) -> list[str]:
    """Return which adapters a block gets.

    Args:
        config: The options.
        anatomy: The parts of the block.
        index: Its index among the blocks that the options can adapt.
    """
    wanted = {
        "temporal": config.temporal and _has_temporal(config.temporal_layers, index),
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
        targets = list(blocks)
    else:
        raise ValueError(nothing(model, found, config))
    names = [name for name in found.modules if name in {*blocks, *targets}]
    _check_indices(model, len(names), config)
    layers = _indices(config.layers_to_transform) or range(len(names))
    selected = [name for name in targets if not _matches(config.exclude_modules, name) and names.index(name) in layers]
    wanted = {name: branches(config, found.modules[name], names.index(name)) for name in selected}
    if not any(wanted.values()):
        raise ValueError(
            f"No block is left: target_modules={config.target_modules!r}, exclude_modules={config.exclude_modules!r}, "
            f"layers_to_transform={config.layers_to_transform!r} and temporal_layers={config.temporal_layers!r} "
            f"together exclude all of {as_regex(list(blocks))!r}."
        )
    return {name: has for name, has in wanted.items() if has}


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
    if config.may_convolve:
        known = as_regex(outermost(found.modules)[:8])
        return (
            f"{type(model).__name__} has no block that AIM can adapt by itself. {observed}\nGive target_modules, "
            f"names of modules that map tokens to tokens: {known or 'this model has none'!r}, for example."
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
    possible = found.modules if config.may_convolve else blocks
    named = _own_names(model)
    matched = [name for name in dict.fromkeys(name for name, _ in named) if _matches(config.target_modules, name)]
    wrong = [name for name in matched if name not in possible]
    if wrong or not matched:
        what = f"{', '.join(wrong[:4])}, which AIM cannot adapt as a block" if wrong else "no module"
        known = {**found.without_attention, **found.left_out}
        reasons = listed({name: known[name] for name in wrong if name in known})
        others = [name for name in outermost(found.modules) if name not in blocks]
        a = "A" if config.may_convolve else "With temporal='auto', a"
        convolved = f" {a} convolution over time is possible in {as_regex(others[:8])!r} as well."
        raise ValueError(
            f"target_modules={config.target_modules!r} matches {what}.{reasons}\nThe blocks of this "
            f"{type(model).__name__} are {as_regex(list(blocks))!r}.{convolved if others and config.temporal else ''}"
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


def _own_names(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of a model, without itself, by the names that they have without adapters.

    Of a compiled module, only what it compiles is named.
    """
    named = [(name, module) for name, module in model.named_modules() if "_orig_mod" not in module._modules]
    return [(name.replace("base_layer.", ""), module) for name, module in named if name]


def _matches(patterns: str | set[str] | None, name: str) -> bool:
    """Match a name against a regular expression or a set of suffixes, as PEFT does."""
    wanted = SimpleNamespace(target_modules=patterns)
    return patterns is not None and bool(check_target_module_exists(wanted, unwrapped(name)))


def check_free(model: nn.Module, adapter_name: str) -> None:
    """Check that a model has no PEFT adapters that conflict with a new AIM adapter.

    Raises:
        ValueError: If it is or contains a PeftModel, has layers of another method, has an adapter of this name, is
            sharded, or is compiled by torch.jit.
    """
    check_own_code_and_weights(model)
    for name, module in model.named_modules():
        if isinstance(module, (PeftModel, BaseTuner)):
            raise ValueError(
                f"The backbone {'is' if not name else f'contains, as {name!r},'} a {type(module).__name__} already. "
                "To add another AIM adapter, call its add_adapter(name, config); otherwise pass the model that its "
                "unload() or merge_and_unload() returns."
            )
        if isinstance(module, BaseTunerLayer) and not isinstance(module, AIMTunerLayer):
            raise ValueError(
                f"{name!r} is a {type(module).__name__} of another PEFT method, which would be trained and switched "
                "together with AIM, but not saved. Merge or unload that adapter first: merge_and_unload()."
            )
        if isinstance(module, AIMTunerLayer) and adapter_name in module.adapters:
            raise ValueError(
                f"{type(model).__name__} has an adapter {adapter_name!r} already. Choose another adapter_name, or "
                "call unload() on the adapted model first."
            )


def check_part_names(found: Inspection, names: PartNames, is_first: bool) -> None:
    """Check that the names of parts that a config gives are those of the blocks that were found.

    Args:
        found: The structure of the model.
        names: The names that the config gives.
        is_first: Whether the model has no other adapter.

    Raises:
        ValueError: If the blocks have other parts.
    """
    for part, name in vars(names).items():
        others = {getattr(anatomy, part) or "none" for anatomy in found.blocks.values()} - {name}
        if name is not None and others:
            known = ", ".join(sorted(others))
            raise ValueError(
                f"{part}_module={name!r} is not what the blocks have there: {known}. Leave {part}_module out."
                if is_first
                else f"{part}_module={name!r} is not the module that the existing adapters use, {known}. All adapters "
                f"of a model share the parts of its blocks; leave {part}_module out."
            )


def check_modules_to_save(model: nn.Module, found: Inspection, config: AIMConfig) -> None:
    """Check that ``modules_to_save`` exist, and that AIM has no hooks on them, since PEFT copies them.

    Raises:
        ValueError: If one does not exist, or overlaps with the modules that AIM adapts.
    """
    named = _own_names(model)
    hooked = [norm for norm in found.entries.values() if norm and config.temporal_embedding == "input"]
    hooked += found.final_norms if config.final_norm else []
    blocks = [name for name in found.modules if name in config.branches]
    learning = [name for name, module in named if within(name, blocks) and any(True for _ in module.parameters())]
    hooked += [*blocks, *learning]
    for wanted in config.modules_to_save or []:
        matched = [name for name, _ in named if name.endswith(wanted)]  # as PEFT does
        wrong = [name for name in matched if any(part == name or part.startswith(f"{name}.") for part in hooked)]
        if not matched or wrong:
            what = f"{wrong[0]}, which overlaps with the modules that AIM adapts" if wrong else "no module"
            outside = [name for name, _ in model.named_children() if not any(within(b, [name]) for b in blocks)]
            raise ValueError(
                f"modules_to_save={config.modules_to_save} matches {what}. Give modules outside of adapted blocks, "
                f"such as the final norm. At its top level, this {type(model).__name__} has {', '.join(outside)}."
            )


def check_head(model: nn.Module, found: Inspection, config: AIMConfig) -> None:
    """Check that the model has a slot for an adapter's own head.

    Raises:
        ValueError: If it has none, or if ``modules_to_save`` contains the model's head.
    """
    if found.head is None:
        raise ValueError(
            f"num_labels={config.num_labels} adds a head, but {type(model).__name__} has no slot for one: its output "
            "is not that of a linear layer, or of an identity in its place. Use the model's variant for image "
            f"classification, or append a head: nn.Sequential(model, nn.Linear(features, {config.num_labels}))."
        )
    if any(found.head.endswith(name) for name in config.modules_to_save or []):
        raise ValueError(
            f"modules_to_save={config.modules_to_save} contains the head {found.head!r}, which num_labels="
            f"{config.num_labels} replaces with a new one. Leave one of the two out."
        )


def put_into(parent: nn.Module, name: str, module: nn.Module) -> None:
    """Replace a child of a module; one that was compiled by itself is compiled anew, with its adapters."""
    setattr(parent, name, module)
    if "_orig_mod" in parent._modules:
        parent._initialize()  # its forward is bound to the child that it had


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
