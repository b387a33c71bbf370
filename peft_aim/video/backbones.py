"""Loads a pretrained image model by name, with the preprocessing that it was trained with."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from peft_aim.video.transforms import Preprocessing


def load_backbone(
    name: str, weights: str | None = None, random_weights: bool = False
) -> tuple[nn.Module, Preprocessing]:
    """Load an image model and how it wants its images.

    Args:
        name: A model of timm, ``vit_base_patch16_clip_224.openai`` for example, or a folder or Hub id of transformers
            (with a "/" in it), ``google/vit-base-patch16-224`` for example.
        weights: A file of weights to use instead of those that timm downloads.
        random_weights: Don't load any: a frozen backbone of noise, for trying things out.

    Raises:
        ValueError: If there is no such model, or its pretrained weights cannot be had.
    """
    if "/" in name or Path(name).is_dir():
        if weights or random_weights:
            raise ValueError(
                f"{name} is loaded by transformers with its own weights. Leave weights and random_weights out."
            )
        return _from_transformers(name)
    return _from_timm(name, weights, random_weights)


def _from_timm(name: str, weights: str | None, random_weights: bool) -> tuple[nn.Module, Preprocessing]:
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name.split('.')[0][:8]}*")[:5]
        raise ValueError(
            f"timm has no model {name!r}{f' (similar: {similar})' if similar else ''}. See timm.list_models(); a "
            "model of transformers is given by its folder or by its Hub id, with a '/' in it."
        )
    if weights and not Path(weights).is_file():
        raise ValueError(f"There is no file {weights} with weights for {name}.")
    try:
        model = timm.create_model(name, pretrained=not (weights or random_weights), num_classes=0)
    except Exception as error:
        raise ValueError(
            f"The pretrained weights of {name} could not be loaded ({type(error).__name__}: {error}). Give a file "
            "that has them with --weights FILE, or, knowing that the backbone is then frozen noise, --random-weights."
        ) from error
    if weights:
        state = load_file(weights) if weights.endswith(".safetensors") else torch.load(weights, weights_only=True)
        missing, unexpected = model.load_state_dict(state, strict=False)
        if missing:
            raise ValueError(f"{weights} lacks weights of {name}: {missing[:5]}, and has others: {unexpected[:5]}.")
    data = resolve_model_data_config(model)
    size = tuple(data["input_size"][-2:])
    return model, Preprocessing(size, tuple(data["mean"]), tuple(data["std"]), data["interpolation"])


def _from_transformers(name: str) -> tuple[nn.Module, Preprocessing]:
    try:
        model = AutoModelForImageClassification.from_pretrained(name)
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"transformers cannot load {name!r} as an image classifier: {error}") from error
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    side = size.get("shortest_edge", size.get("height")), size.get("shortest_edge", size.get("width"))
    resampling = {0: "nearest", 2: "bilinear", 3: "bicubic"}.get(int(getattr(processor, "resample", 2)), "bilinear")
    return model, Preprocessing(side, tuple(processor.image_mean), tuple(processor.image_std), resampling)
