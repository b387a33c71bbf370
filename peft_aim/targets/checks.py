"""Checks, before anything is changed, that a model can get an adapter with these options."""

from __future__ import annotations

import re

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from peft_aim.backbone import Inspection, within
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
    _check_not_shared_out(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name or type(model).__name__!r} is compiled by torch.jit, so adapters cannot be attached to its "
                "parts. Pass the model as it was before; torch.compile can be applied before or after."
            )
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


def _check_not_shared_out(model: nn.Module) -> None:
    """Check that each process has the whole model, before it has wrapped or sharded it.

    Adapters that are added later would not be synchronized between processes, and a shard alone cannot be inspected.

    Raises:
        ValueError: If it is wrapped for several processes (DDP, FSDP), or if its weights are shards (FSDP 2, tensor
            parallelism, DeepSpeed's zero.Init).
    """
    wrapped = [module for module in model.modules() if hasattr(module, "process_group") and hasattr(module, "module")]
    shards = [name for name, parameter in model.named_parameters() if hasattr(parameter, "device_mesh")]
    empty = [name for name, p in model.named_parameters() if hasattr(p, "ds_id") and not p.numel()]
    if wrapped or shards or empty:
        how = f"has weights that DeepSpeed has partitioned ({empty[0]} is empty: zero.Init)" if empty else ""
        how = f"has shards as weights ({shards[0]} is a DTensor)" if shards else how
        how = f"is wrapped in {type(wrapped[0]).__name__}" if wrapped else how
        raise ValueError(
            f"{type(model).__name__} {how}. Adapters that are added now would not be synchronized between processes. "
            "Add them to the model first, then wrap or shard it: get_peft_model, then accelerator.prepare or Trainer. "
            "For zero.Init, build the backbone before TrainingArguments or HfDeepSpeedConfig."
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
