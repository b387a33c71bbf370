"""Builds an image model by name, with random weights: to look at what it is made of."""

from __future__ import annotations

import difflib
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
    base, _, tag = name.partition(".")
    known = timm.list_models(f"{base}*", pretrained=True) if tag and timm.is_model(base) else timm.list_models()
    if name not in known:
        raise ValueError(
            f"{_unknown('timm', name, known)} A model of transformers is given by its folder or by its Hub id, with a "
            "'/' in it; others by torchvision:NAME and open_clip:NAME."
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
        raise ValueError(_unknown("torchvision", name, models.list_models(module=models)))
    return models.get_model(name, weights=None)


def _open_clip(name: str) -> nn.Module:
    try:
        open_clip = importlib.import_module("open_clip")
    except ModuleNotFoundError:
        raise ValueError("open_clip is not installed: pip install open_clip_torch") from None
    if name not in open_clip.list_models():
        raise ValueError(_unknown("open_clip", name, open_clip.list_models()))
    return open_clip.create_model(name, load_weights=False)


def _unknown(library: str, name: str, known: list[str]) -> str:
    similar = difflib.get_close_matches(name, known, n=3)
    return f"{library} has no model {name!r}{f', did you mean {similar}?' if similar else '.'}"
