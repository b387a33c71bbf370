"""Builds an image model by name, with random weights: to look at what it is made of."""

from __future__ import annotations

import importlib
from pathlib import Path

from torch import nn


def untrained(name: str) -> nn.Module:
    """Build an image model without its weights.

    Args:
        name: A model of timm; a folder or Hub id of transformers, with a "/" in it; or a model of another library
            behind its name, "torchvision:swin_v2_t" or "open_clip:ViT-B-32".

    Raises:
        ValueError: If there is no such model.

    Example:
        >>> type(untrained("torchvision:vit_b_32")).__name__
        'VisionTransformer'
    """
    library, _, rest = name.rpartition(":")
    if library not in ("", "timm", "torchvision", "open_clip"):
        raise ValueError(f"{name!r} is of a library that is not known here. Known are timm, torchvision, open_clip.")
    if not library and ("/" in name or Path(name).is_dir()):
        return _transformers(name)
    build = {"torchvision": _torchvision, "open_clip": _open_clip}.get(library, _timm)
    return build(rest).eval()


def _timm(name: str) -> nn.Module:
    timm = importlib.import_module("timm")
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name.split('.')[0][:8]}*")[:5]
        raise ValueError(
            f"timm has no model {name!r}{f' (similar: {similar})' if similar else ''}. A model of transformers is "
            "given by its folder or by its Hub id, with a '/' in it; others by torchvision:NAME and open_clip:NAME."
        )
    return timm.create_model(name)


def _transformers(name: str) -> nn.Module:
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"transformers has no config {name!r}: {error}") from error
    classifies = type(config) in AutoModelForImageClassification._model_mapping
    return (AutoModelForImageClassification if classifies else AutoModel).from_config(config).eval()


def _torchvision(name: str) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    if name not in models.list_models(module=models):
        raise ValueError(f"torchvision has no model {name!r}. See torchvision.models.list_models().")
    return models.get_model(name, weights=None)


def _open_clip(name: str) -> nn.Module:
    try:
        open_clip = importlib.import_module("open_clip")
    except ModuleNotFoundError:
        raise ValueError("open_clip is not installed: pip install open_clip_torch") from None
    if name not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {name!r}. See open_clip.list_models().")
    return open_clip.create_model(name, load_weights=False)
