"""Which modules of a backbone get what: the options of a config applied to what was found."""

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
    """Return which adapters a block has."""
    wanted = {
        "temporal_in": config.temporal and config.temporal_adapters == 2,
        "temporal": config.temporal,
        "spatial": config.spatial,
        "joint": config.joint and anatomy.mlp is not None,
    }
    return [name for name in BRANCHES if wanted[name]]


def adapted_blocks(model: nn.Module, adapter_name: str) -> list[str]:
    """Return the names of the blocks that have bottlenecks of an adapter, as seen from the image model."""
    return [
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, AIMLayer) and any(module.has(adapter_name, branch) for branch in BRANCHES)
    ]


def select_blocks(model: nn.Module, found: Inspection, config: AIMConfig) -> list[str]:
    """Apply ``target_modules``, ``exclude_modules`` and ``layers_to_transform`` to the blocks that were found.

    Raises:
        ValueError: If a target is no block, if some blocks cannot be adapted and the user hasn't said which should, or
            if no block is left.
    """
    names = list(found.blocks)
    if config.target_modules is not None:
        targets = _targets(model, found, config)
    elif not found.refused:
        targets = names
        if found.skipped:
            warnings.warn(
                f"AIM adapts {len(names)} of {len(names) + len(found.skipped)} blocks with attention of "
                f"{type(model).__name__}, and leaves out:"
                f"{listed(found.skipped)}\nTo say that this is meant, give target_modules={as_regex(names)!r}.",
                stacklevel=2,
            )
    else:
        raise ValueError(
            f"AIM can adapt {len(names)} blocks of {type(model).__name__}, but not these:"
            f"{listed(found.left_out)}\nTo adapt the "
            f"others alone, say so: target_modules={as_regex(names)!r}."
        )
    layers = _layers(model, found, config)
    selected = [name for name in targets if not _matches(config.exclude_modules, name) and names.index(name) in layers]
    if not selected:
        raise ValueError(
            f"No block is left: target_modules={config.target_modules!r}, exclude_modules={config.exclude_modules!r} "
            f"and layers_to_transform={config.layers_to_transform!r} together leave out all of {as_regex(names)!r}."
        )
    return selected


def _targets(model: nn.Module, found: Inspection, config: AIMConfig) -> list[str]:
    """Return the blocks that ``target_modules`` names."""
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
    """Return the indices of blocks that ``layers_to_transform`` asks for."""
    count, layers = len(found.blocks), config.layers_to_transform
    if layers is None:
        return list(range(count))
    layers = [layers] if isinstance(layers, int) else layers
    if max(layers) >= count:
        raise ValueError(
            f"layers_to_transform={config.layers_to_transform} asks for block {max(layers)}, but "
            f"{type(model).__name__} has {count} blocks, 0 to {count - 1}."
        )
    return layers


def _matches(patterns: str | set[str] | None, name: str) -> bool:
    """Match a name against a regular expression, or suffixes, as PEFT does."""
    return patterns is not None and bool(check_target_module_exists(SimpleNamespace(target_modules=patterns), name))


def check_free(model: nn.Module, adapter_name: str) -> None:
    """Check that nothing of PEFT's is in a model that AIM would get in the way of.

    Raises:
        ValueError: If it is a PeftModel, has layers of another method, or an adapter of this name.
    """
    for name, module in model.named_modules():
        if isinstance(module, (PeftModel, BaseTuner)):
            raise ValueError(
                f"The backbone {'is' if not name else f'holds, as {name!r},'} a {type(module).__name__} already. For "
                "another AIM adapter on it call its add_adapter(name, config); otherwise pass the model that its "
                "unload() (or merge_and_unload()) gives back."
            )
        if isinstance(module, BaseTunerLayer) and not isinstance(module, AIMTunerLayer):
            raise ValueError(
                f"{name!r} is a {type(module).__name__} of another PEFT method, which would train and be switched "
                "along with AIM, but not be saved. Merge or unload that adapter first: merge_and_unload()."
            )
        if isinstance(module, AIMTunerLayer) and adapter_name in module.adapters:
            raise ValueError(
                f"{type(model).__name__} has an adapter {adapter_name!r} already. Choose another adapter_name, or "
                "call unload() on the adapted model first."
            )


def check_modules_to_save(model: nn.Module, found: Inspection, config: AIMConfig) -> None:
    """Check that modules to train as a whole exist, and that AIM has no hooks on what PEFT would make copies of.

    Raises:
        ValueError: If one does not exist, is a part of an adapted block or holds one.
    """
    names = [name.replace("base_layer.", "") for name, _ in model.named_modules()]
    hooked = [norm for norm in found.entries.values() if norm and config.temporal_embedding]
    hooked += found.final_norms if config.final_norm else []
    blocks = [name for name in found.blocks if name in config.branches]
    inside = [(name.replace("base_layer.", ""), module) for name, module in model.named_modules()]
    learning = [name for name, module in inside if within(name, blocks) and any(True for _ in module.parameters())]
    hooked += [*blocks, *learning]
    for wanted in config.modules_to_save or []:
        matched = [name for name in names if name.endswith(wanted)]  # as PEFT does
        wrong = [name for name in matched if any(part == name or part.startswith(f"{name}.") for part in hooked)]
        if not matched or wrong:
            what = f"{wrong[0]}, which belongs to what AIM adapts" if wrong else "no module"
            outside = [name for name, _ in model.named_children() if not any(b.startswith(name) for b in found.blocks)]
            raise ValueError(
                f"modules_to_save={config.modules_to_save} matches {what}. It is for modules outside of adapted "
                f"blocks, the final norm above all. At its top this {type(model).__name__} has {', '.join(outside)}."
            )


def check_head(model: nn.Module, found: Inspection, config: AIMConfig) -> None:
    """Check that an adapter's own head has a place in the model.

    Raises:
        ValueError: If it has none, or if ``modules_to_save`` is to train the model's head, too.
    """
    if found.head is None:
        raise ValueError(
            f"num_labels={config.num_labels} asks for a head, but the output of {type(model).__name__} does not come "
            "straight from a linear layer (or an identity in its place), so there is nowhere to put one. Use the "
            "model's variant for image classification, or put the head behind it: "
            f"nn.Sequential(model, nn.Linear(features, {config.num_labels}))."
        )
    if any(found.head.endswith(name) for name in config.modules_to_save or []):
        raise ValueError(
            f"modules_to_save={config.modules_to_save} holds the head {found.head!r}, which num_labels="
            f"{config.num_labels} replaces by a fresh one. Leave one of the two out."
        )


def as_regex(names: list[str]) -> str:
    """Return one regular expression for names, grouped by what they have in common."""
    groups = defaultdict(list)
    for name in names:
        parent, _, last = name.rpartition(".")
        groups[parent].append(re.escape(last))
    return "|".join(
        (f"{re.escape(parent)}\\." if parent else "") + (f"({'|'.join(last)})" if len(last) > 1 else last[0])
        for parent, last in groups.items()
    )
