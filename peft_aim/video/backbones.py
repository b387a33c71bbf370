"""Loads a pretrained image model by name, with the preprocessing that it was trained with."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from torch import nn

from peft_aim.backbone import check_known, parse
from peft_aim.convert import with_place_for_head
from peft_aim.tracing import is_norm
from peft_aim.video.data import Preprocessing


@dataclass(frozen=True)
class Source:
    """Where an image model comes from.

    Attributes:
        model: Its name: of timm, a folder or Hub id of transformers, "torchvision:NAME" or "open_clip:NAME/WEIGHTS",
            see :func:`peft_aim.backbone.names.parse`.
        weights: A file of weights to use instead of those that its library downloads.
        model_class: The class of transformers to load it with, ``AutoModelForImageClassification`` if it is None.
        revision: Which state of a Hub repository of transformers.
        image_size: Height and width of its images, in pixels, if not those that it was trained on; not every model can
            be had in other sizes.
        random_weights: Don't load any: a frozen backbone of noise, for trying things out.
    """

    model: str
    weights: str | None = None
    model_class: str | None = None
    revision: str | None = None
    image_size: int | None = None
    random_weights: bool = False

    @property
    def downloads(self) -> bool:
        """Whether its library is to load the pretrained weights that it knows."""
        return not (self.weights or self.random_weights)

    def resolved(self, model: nn.Module) -> Source:
        """Say more exactly where a model that was loaded from here can be found again, from elsewhere, too."""
        weights = self.weights and str(Path(self.weights).resolve())
        revision = getattr(getattr(model, "config", None), "_commit_hash", None) or self.revision
        return replace(self, model=model.name_or_path, weights=weights, revision=revision)


def load_backbone(source: Source | str) -> tuple[nn.Module, Preprocessing]:
    """Load an image model and how it wants its images.

    Args:
        source: Where it comes from, or just its name.

    Returns:
        The model, whose ``name_or_path`` is what it can be loaded by again, and its preprocessing.

    Raises:
        ValueError: If there is no such model, or its pretrained weights cannot be had.
    """
    source = Source(source) if isinstance(source, str) else source
    library, name = parse(source.model)
    if library == "transformers":
        return _from_transformers(name, source)
    if source.model_class or source.revision:
        raise ValueError(f"A model class and a revision are for transformers' models; {source.model} is of {library}.")
    check_known(library, name.partition("/")[0])
    if source.weights and not Path(source.weights).is_file():
        raise ValueError(
            f"There is no file {source.weights} with weights for {name}. Say where it is with --model and --weights."
        )
    build = {"timm": _from_timm, "torchvision": _from_torchvision, "open_clip": _from_open_clip}[library]
    try:
        model, preprocessing, found = build(name, source)
    except Exception as error:
        raise ValueError(
            f"The pretrained weights of {name} could not be loaded ({type(error).__name__}: {error}). Give a file "
            "that has them with --weights FILE, or, knowing that the backbone is then frozen noise, --random-weights."
        ) from error
    model.name_or_path = found
    return _resized(model, preprocessing, source)


def _from_timm(name: str, source: Source) -> tuple[nn.Module, Preprocessing, str]:
    options = {"pretrained": source.downloads, "num_classes": 0}
    try:  # of most models the position embedding is made for a size, and resized when weights are loaded
        model = timm.create_model(name, **options, **({"img_size": source.image_size} if source.image_size else {}))
    except TypeError:
        model = timm.create_model(name, **options)
    _load_file(model, source.weights)
    data, tag = resolve_model_data_config(model), model.pretrained_cfg.get("tag")
    found = f"timm/{name.partition('.')[0]}{f'.{tag}' if source.downloads and tag else ''}"
    size = tuple(data["input_size"][-2:])
    return model, Preprocessing(size, data["mean"], data["std"], data["interpolation"]), found


def _from_torchvision(name: str, source: Source) -> tuple[nn.Module, Preprocessing, str]:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    model = torchvision.models.get_model(name, weights=weights if source.downloads else None)
    _load_file(model, source.weights)
    wish = weights.transforms()
    size = (wish.crop_size * 2)[:2]
    return model, Preprocessing(size, wish.mean, wish.std, wish.interpolation.value), f"torchvision:{name}"


def _from_open_clip(name: str, source: Source) -> tuple[nn.Module, Preprocessing, str]:
    import open_clip  # no part of the extra

    name, _, tag = name.partition("/")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if source.downloads and tag not in tags:
        raise ValueError(f"open_clip has the weights {tags} of {name}, but not {tag!r}: write {name}/WEIGHTS")
    wish = {"load_weights": not source.random_weights, "force_image_size": source.image_size}
    model = open_clip.create_model(name, source.weights or tag or None, **wish)
    data = open_clip.get_model_preprocess_cfg(model)
    size = (data["size"],) * 2 if isinstance(data["size"], int) else data["size"]
    preprocessing = Preprocessing(size, data["mean"], data["std"], data["interpolation"])
    return with_place_for_head(model), preprocessing, f"open_clip:{name}{f'/{tag}' if tag else ''}"


def _load_file(model: nn.Module, path: str | None) -> None:
    if path is None:
        return
    state = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    state = next((state[key] for key in ("state_dict", "model") if key in state), state)
    missing, unexpected = model.load_state_dict(state, strict=False)
    _check_missing(model, missing, path, unexpected)


def _check_missing(model: nn.Module, missing: Iterable[str], where: str, others: Iterable[str] = ()) -> None:
    """Check that nothing that stays frozen is missing: it would be noise, and nobody would see it.

    Raises:
        ValueError: If there is more than what an adapter brings along or trains itself: the last norms and the head.
    """
    own = _at_the_end(model)
    lacking = sorted(name for name in missing if name.rpartition(".")[0] not in own)
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        instead = f", and has others: {sorted(others)[:5]}" if others else ""
        raise ValueError(f"{where} lacks {lacking[:5]}{more}{instead}: the backbone would be frozen noise")
    norms = sorted(name for name in missing if is_norm(model.get_submodule(name.rpartition(".")[0])))
    if norms:
        fresh = "the final norm begins as one that scales nothing, and is trained with the adapter."
        warnings.warn(f"{where} lacks {', '.join(norms)}: {fresh}", stacklevel=2)


def _at_the_end(model: nn.Module) -> list[str]:
    """Return the head, if there is one, and the norms before it that come behind all else that learns."""
    learning = [(n, m) for n, m in model.named_modules() if is_norm(m) or any(True for _ in m.parameters(False))]
    found: list[str] = []
    for name, module in reversed(learning):
        is_head = not found and isinstance(module, nn.Linear)
        if not is_head and not is_norm(module):
            break
        found.append(name)
    return found


def _from_transformers(name: str, source: Source) -> tuple[nn.Module, Preprocessing]:
    if source.weights or source.random_weights:
        raise ValueError(
            f"{name} is loaded by transformers with its own weights. Leave weights and random_weights out."
        )
    if not Path(name).is_dir() and (len(Path(name).parts) != 2 or name.startswith(".")):
        raise ValueError(f"There is no folder {name}, and it is no Hub id, OWNER/NAME. Say where it is with --model.")
    kind = getattr(transformers, source.model_class or "AutoModelForImageClassification", None)
    if kind is None:
        raise ValueError(f"transformers has no class {source.model_class!r} to load {name} with.")
    try:
        revision = source.revision or "main"
        model, loading = kind.from_pretrained(name, revision=revision, output_loading_info=True)
        _check_missing(model, loading["missing_keys"], name, loading["unexpected_keys"])
        preprocessing = _as_wished(transformers.AutoImageProcessor.from_pretrained(name, revision=revision))
    except (OSError, ValueError) as error:
        raise ValueError(f"transformers cannot load {name!r} as an image model: {error}") from error
    if Path(name).is_dir():
        model.name_or_path = str(Path(name).resolve())  # found from elsewhere, too
    return _resized(model, preprocessing, source)


def _resized(model: nn.Module, preprocessing: Preprocessing, source: Source) -> tuple[nn.Module, Preprocessing]:
    if source.image_size is None:
        return model, preprocessing
    size = (source.image_size,) * 2
    model.image_size = size  # the survey runs it on images of this size, and refuses it if it takes others only
    return model, replace(preprocessing, size=size)


def _as_wished(processor: Any) -> Preprocessing:
    """Return the preprocessing of an image processor of transformers.

    Raises:
        ValueError: If it does what cannot be said here.
    """
    if getattr(processor, "do_flip_channel_order", False):
        raise ValueError("its image processor swaps red and blue, which is not done here. Use another variant")
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    side = size.get("shortest_edge", size.get("height")), size.get("shortest_edge", size.get("width"))
    # Lanczos is not there for tensors.
    resample = 2 if processor.resample is None else int(processor.resample)
    resampling = {0: "nearest", 1: "bicubic", 3: "bicubic"}.get(resample, "bilinear")
    plain = not getattr(processor, "do_normalize", True)
    mean, std = ((0.0,) * 3, (1.0,) * 3) if plain else (processor.image_mean, processor.image_std)
    # It normalizes pixels times this factor; here they are divided by 255 before.
    factor = 255 * (processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0)
    return Preprocessing(side, [value / factor for value in mean], [value / factor for value in std], resampling)
