"""Checks that a model is here: not only its shards, nor compiled code instead of modules."""

from __future__ import annotations

import torch
from torch import nn


def check_own_code_and_weights(model: nn.Module) -> None:
    """Check that a model can be inspected and that its adapters will be trained: it is whole, and still Python.

    Adapters that are added to a sharded model would not be synchronized between processes.

    Raises:
        ValueError: If it is wrapped for several processes (DDP, FSDP), if its weights are shards (FSDP 2, tensor
            parallelism, DeepSpeed's zero.Init), or if parts of it are compiled by torch.jit.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name or type(model).__name__!r} is compiled by torch.jit, so adapters cannot be attached to its "
                "parts. Pass the model as it was before; torch.compile can be applied before or after."
            )
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
