"""Parses the names of image models, and checks that their library has them."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

LIBRARIES = ("timm", "torchvision", "open_clip")


def parse(name: str) -> tuple[str, str]:
    """Split the name of an image model into its library and its name there.

    Args:
        name: A timm model, "NAME" or "timm/NAME"; a transformers model, as a folder or a Hub id with a "/"; or a model
            of another library, prefixed by its name: "torchvision:swin_v2_t", "open_clip:ViT-B-32".

    Returns:
        The library and the name.

    Raises:
        ValueError: If the library is not supported.

    Example:
        >>> parse("vit_tiny_patch16_224"), parse("open_clip:ViT-B-32"), parse("google/vit-base-patch16-224")
        (('timm', 'vit_tiny_patch16_224'), ('open_clip', 'ViT-B-32'), ('transformers', 'google/vit-base-patch16-224'))
    """
    library, _, rest = name.rpartition(":")
    if library and not Path(name).exists():
        if library not in LIBRARIES:
            raise ValueError(f"{library!r} in {name!r} is not a supported library. Use one of {', '.join(LIBRARIES)}.")
        return library, rest
    if name.startswith("timm/") and not Path(name).exists():
        return "timm", name.removeprefix("timm/")
    return ("transformers" if "/" in name or Path(name).is_dir() else "timm"), name


def check_known(library: str, name: str) -> None:
    """Check that a library has a model of this name.

    Raises:
        ValueError: If it has no such model, or is not installed.
    """
    try:
        module = importlib.import_module("torchvision.models" if library == "torchvision" else library)
    except ModuleNotFoundError:
        package = "open_clip_torch" if library == "open_clip" else library
        raise ValueError(f"{library} is not installed: pip install {package}") from None
    known = _known(library, module, name)
    if name not in known:
        similar = difflib.get_close_matches(name, known, n=3)
        others = (
            " Models of transformers are given by a folder or a Hub id with a '/', those of other libraries as "
            "torchvision:NAME or open_clip:NAME."
        )
        raise ValueError(
            f"{library} has no model {name!r}{f', did you mean {similar}?' if similar else '.'}"
            f"{others if library == 'timm' else ''}"
        )


def _known(library: str, module: object, name: str) -> list[str]:
    if library == "torchvision":
        return module.list_models(module=module)
    if library == "open_clip":
        return module.list_models()
    base, _, tag = name.partition(".")
    return module.list_models(f"{base}*", pretrained=True) if tag and module.is_model(base) else module.list_models()
