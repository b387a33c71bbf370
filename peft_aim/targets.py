"""Which modules of a backbone get what: the options of a config applied to what was found."""

from __future__ import annotations

import re
from collections import defaultdict
from types import SimpleNamespace

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from peft_aim.backbone import Survey
from peft_aim.config import AIMConfig


def branches(config: AIMConfig) -> list[str]:
    """Return which adapters a block has."""
    wanted = {
        "temporal_in": config.temporal and config.temporal_adapters == 2,
        "temporal": config.temporal,
        "spatial": config.spatial,
        "joint": config.joint,
    }
    return [name for name, on in wanted.items() if on]


def select_blocks(model: nn.Module, found: Survey, config: AIMConfig) -> list[str]:
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
    else:
        listed = "".join(f"\n  {name}: {reason}" for name, reason in found.refused.items())
        raise ValueError(
            f"AIM can adapt {len(names)} blocks of {type(model).__name__}, but not these:{listed}\nTo adapt the "
            f"others alone, say so: target_modules={as_regex(names)!r}."
        )
    layers = _layers(model, found, config)
    selected = [name for name in targets if not _matches(config.exclude_modules, name) and names.index(name) in layers]
    if not selected:
        raise ValueError(
            f"No block is left: exclude_modules={config.exclude_modules!r} and layers_to_transform="
            f"{config.layers_to_transform!r} leave out all of {as_regex(names)!r}."
        )
    return selected


def _targets(model: nn.Module, found: Survey, config: AIMConfig) -> list[str]:
    """Return the blocks that ``target_modules`` names."""
    matched = [name for name, _ in model.named_modules() if name and _matches(config.target_modules, name)]
    wrong = [name for name in matched if name not in found.blocks]
    if wrong or not matched:
        what = f"{', '.join(wrong[:4])}, which AIM cannot adapt as a block" if wrong else "no module"
        reasons = "".join(f"\n  {name}: {found.refused[name]}" for name in wrong if name in found.refused)
        raise ValueError(
            f"target_modules={config.target_modules!r} matches {what}.{reasons}\nThe blocks of this "
            f"{type(model).__name__} are {as_regex(list(found.blocks))!r}."
        )
    return [name for name in found.blocks if name in matched]


def _layers(model: nn.Module, found: Survey, config: AIMConfig) -> list[int]:
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


def check_head(model: nn.Module, found: Survey, config: AIMConfig) -> None:
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
