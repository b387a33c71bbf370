"""Saving a trained adapter with its description and results."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel

from peft_aim.config import AIMConfig
from peft_aim.saving import adapter_weights, in_precision
from peft_aim.video.description import Description
from peft_aim.video.training.trainer import ClipTrainer


@torch.no_grad()
def round_weights(adapted: PeftModel, dtype: str) -> None:
    """Round an adapter to the precision it will be saved in, so that the evaluation is of the saved weights."""
    adapted.active_peft_config.save_dtype = dtype
    weights = adapter_weights(adapted, adapted.active_adapter)
    for name, tensor in in_precision(weights, dtype).items():
        weights[name].copy_(tensor)


def save(trainer: ClipTrainer, description: Description, output: Path) -> None:
    """Save the adapter with its description, from any number of processes."""
    config = trainer.accelerator.unwrap_model(trainer.model).active_peft_config
    config.revision = description.source.revision
    description.write(config)
    if trainer.is_fsdp_enabled:  # each process has a shard of it
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(output))
    if trainer.args.should_save:
        (output / "training_args.bin").unlink(missing_ok=True)  # a pickle, which is unsafe to load


def save_results(adapted: PeftModel, description: Description, output: Path) -> None:
    """Add the results in a description to a saved adapter; its weights are not written, and so not lost, again."""
    saved = AIMConfig.from_pretrained(str(output))
    for config in (adapted.active_peft_config, saved):
        description.write(config)
    saved.save_pretrained(str(output))
