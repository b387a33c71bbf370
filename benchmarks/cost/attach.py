"""What attaching an adapter costs: arithmetic and memory of ``get_peft_model``, beside those of one image."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import timm
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from benchmarks.measuring.counting import Alive, gmac
from peft_aim import AIMConfig
from peft_aim.backbone import inspect_backbone

Facts = dict[str, Any]


def attaching(models: dict[str, str]) -> list[Facts]:
    """Attach adapters to models, and count.

    Args:
        models: Names of the models, as :func:`build` takes them, by their names in the table.
    """
    found = []
    for title, name in models.items():
        found.append({"model": title, "name": name, **arithmetic(build(name)), **memory(build(name))})
        print(found[-1], flush=True)
    return found


def build(name: str) -> nn.Module:
    """Build a frozen model with random weights: timm's of this name without a head, or vit-pytorch's ViT-B/16."""
    torch.manual_seed(0)
    if name == "vit_pytorch.ViT":
        from vit_pytorch import ViT

        sizes = {"dim": 768, "depth": 12, "heads": 12, "mlp_dim": 3072}
        model = ViT(image_size=224, patch_size=16, num_classes=1000, **sizes)
        model.image_size = (224, 224)
    else:
        model = timm.create_model(name, num_classes=0)
        model.image_size = model.pretrained_cfg["input_size"][1:]
    return model.eval().requires_grad_(False)


def arithmetic(model: nn.Module) -> Facts:
    """Count multiply-adds in units of 10^9 (GMAC), and how often the model runs.

    Returns:
        GMAC of one image and of attaching an adapter, and their ratio; the number of times that the model runs for the
        first adapter, for a second one, and for a saved one after ``unload()``.
    """
    runs: list[None] = []
    of_image = gmac(lambda: model(torch.zeros(1, 3, *model.image_size)))
    model.register_forward_pre_hook(lambda *_: runs.append(None))
    adapted: list[PeftModel] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about skipped blocks
        of_attaching = gmac(lambda: adapted.append(get_peft_model(model, AIMConfig())))
    first = len(runs)
    adapted[0].add_adapter("second", AIMConfig(temporal_adapters=2))
    second = len(runs) - first
    with tempfile.TemporaryDirectory() as folder:
        adapted[0].save_pretrained(folder)
        PeftModel.from_pretrained(adapted[0].unload(), folder)
    return {
        "image_gmac": of_image,
        "attach_gmac": of_attaching,
        "ratio": of_attaching / of_image,
        "runs": [first, second, len(runs) - first - second],
    }


def memory(model: nn.Module) -> Facts:
    """Return megabytes: the peak of the inspection, that of running two images, and the largest block's weights."""
    images = torch.zeros(2, 3, *model.image_size)
    with torch.no_grad(), Alive() as forward:
        model(images)
    with Alive() as inspection:
        blocks = inspect_backbone(model).blocks
    sizes = [sum(p.numel() * p.element_size() for p in model.get_submodule(name).parameters()) for name in blocks]
    peaks = {"inspection_mb": inspection.peak / 1e6, "two_images_mb": forward.peak / 1e6}
    return {**peaks, "largest_block_mb": max(sizes) / 1e6}
