"""Checks, before anything is changed, that a model can get an adapter with these options."""

from __future__ import annotations

import re

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from peft_aim.backbone import Inspection, PartNames, check_own_code_and_weights, listed, within
from peft_aim.config import AIMConfig
from peft_aim.layers import AIMTunerLayer
from peft_aim.targets.names import own_names


def check_adapter_name(adapter_name: str) -> None:
    """Check that torch's containers, in which adapters are kept, can hold an adapter of this name.

    Raises:
        ValueError: If they cannot.

    Example:
        >>> check_adapter_name("signs.v2")
        Traceback (most recent call last):
        ...
        ValueError: An adapter cannot be named 'signs.v2': module name can't contain ".", got: signs.v2. Choose a \
name of letters, digits, _ and -, such as 'signs_v2'.
    """
    try:
        nn.ModuleDict({adapter_name: nn.Identity()})
    except KeyError as error:
        like = re.sub(r"[^\w-]+", "_", adapter_name)
        like = like if like not in (adapter_name, "") else f"{like or 'my'}_adapter"
        raise ValueError(
            f"An adapter cannot be named {adapter_name!r}: {error.args[0]}. Choose a name of letters, digits, _ and "
            f"-, such as {like!r}."
        ) from None


def check_free(model: nn.Module, adapter_name: str) -> None:
    """Check that a model has no PEFT adapters that conflict with a new AIM adapter.

    Raises:
        ValueError: If it is or contains a PeftModel, has layers of another method, has an adapter of this name, or is
            sharded.
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
    named = own_names(model)
    hooked = [norm for norm in found.entries.values() if norm and config.temporal_embedding == "input"]
    hooked += found.final_norms if config.final_norm else []
    blocks = [name for name in found.modules if name in config.branches]
    learning = [name for name, module in named if within(name, blocks) and any(True for _ in module.parameters())]
    outside = {found.modules[name].norm_outside for name in blocks} | {found.modules[n].end_outside for n in blocks}
    hooked += [*blocks, *learning, *(name for name in outside if name is not None)]
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


def check_causal(reasons: dict[str, str], config: AIMConfig) -> None:
    """Check that temporal attention can be limited to earlier frames where no convolution may take its place.

    Args:
        reasons: Why it cannot, by the name of the block.
        config: The options.

    Raises:
        ValueError: If it cannot, with the reasons.
    """
    if reasons and not config.may_convolve:
        raise ValueError(
            f"causal=True is not possible in {len(reasons)} blocks:{listed(reasons)}\nTo give these a causal "
            "convolution over time instead of temporal attention, pass temporal='auto'; to leave them out, "
            "exclude_modules."
        )


def check_embedding_is_added_once(found: Inspection, entries: list[str]) -> None:
    """Check that the modules that add a temporal embedding run only once in a forward pass.

    Raises:
        ValueError: If one runs more often, as the first block of a model whose blocks share their weights does.
    """
    repeated = [name for name in entries if name in found.repeated]
    if repeated:
        raise ValueError(
            f"The temporal embedding is added to the tokens that enter {repeated[0]}, but this runs "
            f"{found.repeated.count(repeated[0])} times in a forward pass, so it would be added each time. Pass "
            "temporal_embedding='blocks', which adds it inside of the temporal adapters, or False."
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
