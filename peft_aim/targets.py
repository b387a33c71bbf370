"""Selects which modules of an inspected backbone get which adapters, by the options of a config."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from types import SimpleNamespace

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from torch import nn

from peft_aim.backbone import Anatomy, Inspection, listed, within
from peft_aim.config import AIMConfig
from peft_aim.layers import BRANCHES, AIMLayer, AIMTunerLayer


def branches(config: AIMConfig, anatomy: Anatomy) -> list[str]:
    """Return which adapters a block gets."""
    wanted = {
        "temporal_in": config.temporal and config.temporal_adapters == 2,
        "temporal": config.temporal,
        "spatial": config.spatial,
        "joint": config.joint and anatomy.mlp is not None,
    }
    return [name for name in BRANCHES if wanted[name]]


def adapted_blocks(model: nn.Module, adapter_name: str) -> list[str]:
    """Return the names, in the backbone, of the blocks that have bottlenecks of an adapter."""
    return [
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, AIMLayer) and any(module.has(adapter_name, branch) for branch in BRANCHES)
    ]


def select_blocks(model: nn.Module, found: Inspection, config: AIMConfig) -> list[str]:
    """Apply ``target_modules``, ``exclude_modules`` and ``layers_to_transform`` to the blocks that were found.

    Raises:
        ValueError: If a target is not a block, if some blocks cannot be adapted and ``target_modules`` is not given,
            or if no block is left.
    """
    names = list(found.blocks)
    if config.target_modules is not None:
        targets = _targets(model, found, config)
    elif not found.rejected:
        targets = names
        if found.skipped:
            warnings.warn(
                f"AIM adapts {len(names)} of {len(names) + len(found.skipped)} blocks with attention of "
                f"{type(model).__name__} and skips these:"
                f"{listed(found.skipped)}\nIf that is intended, pass target_modules={as_regex(names)!r}.",
                stacklevel=2,
            )
    else:
        raise ValueError(
            f"AIM can adapt {len(names)} blocks of {type(model).__name__}, but not these:"
            f"{listed(found.left_out)}\nTo adapt only the others, pass target_modules={as_regex(names)!r}."
        )
    layers = _layers(model, found, config)
    selected = [name for name in targets if not _matches(config.exclude_modules, name) and names.index(name) in layers]
    if not selected:
        raise ValueError(
            f"No block is left: target_modules={config.target_modules!r}, exclude_modules={config.exclude_modules!r} "
            f"and layers_to_transform={config.layers_to_transform!r} together exclude all of {as_regex(names)!r}."
        )
    return selected


def _targets(model: nn.Module, found: Inspection, config: AIMConfig) -> list[str]:
    """Return the blocks that ``target_modules`` matches."""
    matched = [name for name, _ in model.named_modules() if name and _matches(config.target_modules, name)]
    wrong = [name for name in matched if name not in found.blocks]
    if wrong or not matched:
        what = f"{', '.join(wrong[:4])}, which AIM cannot adapt as a block" if wrong else "no module"
        reasons = listed({name: found.left_out[name] for name in wrong if name in found.left_out})
        raise ValueError(
            f"target_modules={config.target_modules!r} matches {what}.{reasons}\nThe blocks of this "
            f"{type(model).__name__} are {as_regex(list(found.blocks))!r}."
        )
    return [name for name in found.blocks if name in matched]


def _layers(model: nn.Module, found: Inspection, config: AIMConfig) -> list[int]:
    """Return the indices of the blocks that ``layers_to_transform`` selects."""
    count, layers = len(found.blocks), config.layers_to_transform
    if layers is None:
        return list(range(count))
    layers = [layers] if isinstance(layers, int) else layers
    if max(layers) >= count:
        raise ValueError(
            f"layers_to_transform={config.layers_to_transform} selects block {max(layers)}, but "
            f"{type(model).__name__} has {count} blocks, 0 to {count - 1}."
        )
    return layers


def _matches(patterns: str | set[str] | None, name: str) -> bool:
    """Match a name against a regular expression or a set of suffixes, as PEFT does."""
    return patterns is not None and bool(check_target_module_exists(SimpleNamespace(target_modules=patterns), name))


def check_free(model: nn.Module, adapter_name: str) -> None:
    """Check that a model has no PEFT adapters that conflict with a new AIM adapter.

    Raises:
        ValueError: If it is or contains a PeftModel, has layers of another method, or has an adapter of this name.
    """
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


def check_modules_to_save(model: nn.Module, found: Inspection, config: AIMConfig) -> None:
    """Check that ``modules_to_save`` exist, and that AIM has no hooks on them, since PEFT copies them.

    Raises:
        ValueError: If one does not exist, or overlaps with the modules that AIM adapts.
    """
    names = [name.replace("base_layer.", "") for name, _ in model.named_modules()]
    hooked = [norm for norm in found.entries.values() if norm and config.temporal_embedding == "input"]
    hooked += found.final_norms if config.final_norm else []
    blocks = [name for name in found.blocks if name in config.branches]
    inside = [(name.replace("base_layer.", ""), module) for name, module in model.named_modules()]
    learning = [name for name, module in inside if within(name, blocks) and any(True for _ in module.parameters())]
    hooked += [*blocks, *learning]
    for wanted in config.modules_to_save or []:
        matched = [name for name in names if name.endswith(wanted)]  # as PEFT does
        wrong = [name for name in matched if any(part == name or part.startswith(f"{name}.") for part in hooked)]
        if not matched or wrong:
            what = f"{wrong[0]}, which overlaps with the modules that AIM adapts" if wrong else "no module"
            outside = [name for name, _ in model.named_children() if not any(within(b, [name]) for b in found.blocks)]
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


def as_regex(names: list[str]) -> str:
    """Return one regular expression that matches all names, grouped by their parents."""
    groups = defaultdict(list)
    for name in names:
        parent, _, last = name.rpartition(".")
        groups[parent].append(re.escape(last))
    return "|".join(
        (f"{re.escape(parent)}\\." if parent else "") + (f"({'|'.join(last)})" if len(last) > 1 else last[0])
        for parent, last in groups.items()
    )
