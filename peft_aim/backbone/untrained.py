"""Builds an image model by name with random weights, for inspection."""

from __future__ import annotations

import importlib

from torch import nn

from peft_aim.backbone.names import check_known, parse


def build_untrained(name: str) -> nn.Module:
    """Build an image model with random weights.

    Args:
        name: The name, see :func:`peft_aim.backbone.names.parse`.

    Raises:
        ValueError: If there is no such model.

    Example:
        >>> type(build_untrained("torchvision:vit_b_32")).__name__
        'VisionTransformer'
    """
    library, rest = parse(name)
    if library == "transformers":
        return _transformers(rest)
    check_known(library, rest)
    if library == "timm":
        return importlib.import_module("timm").create_model(rest).eval()
    if library == "torchvision":
        return importlib.import_module("torchvision.models").get_model(rest, weights=None).eval()
    return importlib.import_module("open_clip").create_model(rest, load_weights=False).eval()


def _transformers(name: str) -> nn.Module:
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"transformers cannot load the config of {name!r}: {error}") from error
    classifies = type(config) in AutoModelForImageClassification._model_mapping
    return (AutoModelForImageClassification if classifies else AutoModel).from_config(config).eval()
