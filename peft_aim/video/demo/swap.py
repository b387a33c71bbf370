"""Loads several adapters onto one fresh backbone and swaps them on one batch, in a process of its own."""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from peft_aim import AIMConfig
from peft_aim.video.backbones import load_backbone


@torch.no_grad()
def swap(model: PeftModel, clips: Tensor) -> dict[str, Tensor]:
    """Score one batch of clips with each adapter of a model.

    Args:
        model: An adapted image classifier of transformers.
        clips: The batch, ``(B, T, 3, H, W)``.

    Returns:
        Scores ``(B, classes)`` by the adapter's name.
    """
    scores = {}
    for name in model.peft_config:
        model.set_adapter(name)
        scores[name] = model(clips).logits
    return scores


def main(expected_file: str, *folders: str) -> int:
    """Compare the scores that adapters give here with those they are expected to give.

    Args:
        expected_file: Safetensors file with the batch, "clips", and the scores of each adapter by its folder.
        folders: Folders of the adapters.

    Returns:
        0 if all scores are equal bit for bit, else 1.
    """
    expected = load_file(expected_file)
    first, *others = folders
    backbone, _ = load_backbone(AIMConfig.from_pretrained(first).base_model_name_or_path)
    model = PeftModel.from_pretrained(backbone, first, adapter_name=first).eval()
    for folder in others:
        model.load_adapter(folder, folder)
    scores = swap(model, expected["clips"])
    for folder in folders:
        equal = torch.equal(scores[folder], expected[folder])
        print(f"  {folder}: scores {'equal bit for bit' if equal else 'DIFFER'}")
    return int(not all(torch.equal(scores[folder], expected[folder]) for folder in folders))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
