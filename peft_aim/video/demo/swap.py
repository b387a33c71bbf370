"""Load several adapters onto one fresh backbone and swap them on one batch; run in a separate process."""

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
        model: An adapted transformers image classifier.
        clips: The batch, ``(B, T, 3, H, W)``.

    Returns:
        Scores ``(B, classes)`` by adapter name.
    """
    scores = {}
    for name in model.peft_config:
        model.set_adapter(name)
        scores[name] = model(clips).logits
    return scores


def main(expected_file: str, *folders: str) -> int:
    """Compare the scores of adapters with expected scores.

    Args:
        expected_file: Safetensors file with the batch, "clips", and the expected scores of each adapter by its folder.
        folders: Folders of the adapters.

    Returns:
        Exit code: 0 if all scores are bit-identical, 1 if not.
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
        print(f"  {folder}: scores {'bit-identical' if equal else 'DIFFER'}")
    return int(not all(torch.equal(scores[folder], expected[folder]) for folder in folders))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
