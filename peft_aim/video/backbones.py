"""Load a pretrained backbone by name, with the preprocessing that it was trained with."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torchvision
import transformers
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from peft_aim.backbone import check_known, parse
from peft_aim.convert import with_place_for_head
from peft_aim.tracing import is_norm
from peft_aim.video.data import Preprocessing
from peft_aim.video.image_size import set_image_size


@dataclass(frozen=True)
class Source:
    """Where to load the backbone from.

    Attributes:
        model: A timm model name, the folder or Hub id of a transformers model, "torchvision:NAME" or
            "open_clip:NAME/WEIGHTS", see :func:`peft_aim.backbone.names.parse`.
        weights: File to load the weights from, instead of downloading them.
        model_class: transformers class to load the model with; None is ``AutoModelForImageClassification``.
        revision: Revision (branch, tag or commit) of the Hub repository of a transformers model.
        image_size: Height and width of the images in pixels, if not those of pretraining. Not every model supports
            other sizes.
        random_weights: Keep the random initialization and load no weights, to try things out.
    """

    model: str
    weights: str | None = None
    model_class: str | None = None
    revision: str | None = None
    image_size: int | None = None
    random_weights: bool = False

    @property
    def downloads(self) -> bool:
        """Whether the library loads its own pretrained weights."""
        return not (self.weights or self.random_weights)

    def resolved(self, model: nn.Module) -> Source:
        """Return where to load the same model from again, in any working directory.

        Args:
            model: The model that was loaded from this source.

        Returns:
            The source with the full model name, an absolute path of the weights file and the commit of a Hub
            repository.
        """
        weights = self.weights and str(Path(self.weights).resolve())
        revision = getattr(getattr(model, "config", None), "_commit_hash", None) or self.revision
        return replace(self, model=model.name_or_path, weights=weights, revision=revision)


def load_backbone(source: Source | str) -> tuple[nn.Module, Preprocessing]:
    """Load a backbone and its preprocessing.

    Args:
        source: Where to load it from, or only its name.

    Returns:
        The model, whose ``name_or_path`` is the name to load it by again, and its preprocessing.

    Raises:
        ValueError: If the model does not exist, its pretrained weights cannot be loaded, or it does not take images of
            the size.
    """
    source = Source(source) if isinstance(source, str) else source
    library, name = parse(source.model)
    if library == "transformers":
        return _from_transformers(name, source)
    if source.model_class or source.revision:
        raise ValueError(
            f"A model class and a revision apply to transformers models, but {source.model} is a {library} model. "
            "Leave them out."
        )
    check_known(library, name.partition("/")[0])
    if source.weights and not Path(source.weights).is_file():
        raise ValueError(
            f"The weights file {source.weights} for {name} does not exist. Give its path with --model and --weights."
        )
    build = {"timm": _from_timm, "torchvision": _from_torchvision, "open_clip": _from_open_clip}[library]
    try:
        model, preprocessing, found = build(name, source)
    except Exception as error:
        action = "Give the weights of this model" if source.weights else "Load them from a file"
        size = "leave out image_size (--image-size), " if source.image_size else ""
        raise ValueError(
            f"The pretrained weights of {name} could not be loaded ({type(error).__name__}: {error}). {action} with "
            f"--weights FILE, {size}or freeze random weights with --random-weights to try things out."
        ) from error
    model.name_or_path = found
    return _resized(model, preprocessing, source)


def _from_timm(name: str, source: Source) -> tuple[nn.Module, Preprocessing, str]:
    options = {"pretrained": source.downloads, "num_classes": 0}
    try:  # most models build their position embedding for img_size, and resize the pretrained one to it
        model = timm.create_model(name, **options, **({"img_size": source.image_size} if source.image_size else {}))
    except TypeError:
        model = timm.create_model(name, **options)
    _load_file(model, source.weights, _timm_filter(name))
    data, tag = resolve_model_data_config(model), model.pretrained_cfg.get("tag")
    found = f"timm/{name.partition('.')[0]}{f'.{tag}' if source.downloads and tag else ''}"
    size = tuple(data["input_size"][-2:])
    return model, Preprocessing(size, data["mean"], data["std"], data["interpolation"]), found


def _from_torchvision(name: str, source: Source) -> tuple[nn.Module, Preprocessing, str]:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    model = torchvision.models.get_model(name, weights=weights if source.downloads else None)
    _load_file(model, source.weights)
    transforms = weights.transforms()
    size = (transforms.crop_size * 2)[:2]
    preprocessing = Preprocessing(size, transforms.mean, transforms.std, transforms.interpolation.value)
    return model, preprocessing, f"torchvision:{name}"


def _from_open_clip(name: str, source: Source) -> tuple[nn.Module, Preprocessing, str]:
    import open_clip  # not in the extra "video"

    name, _, tag = name.partition("/")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if source.downloads and tag not in tags:
        raise ValueError(f"open_clip has no weights {tag!r} for {name}. Choose open_clip:{name}/WEIGHTS from {tags}")
    options = {"load_weights": not source.random_weights, "force_image_size": source.image_size}
    model = open_clip.create_model(name, source.weights or tag or None, **options)
    data = open_clip.get_model_preprocess_cfg(model)
    size = (data["size"],) * 2 if isinstance(data["size"], int) else data["size"]
    preprocessing = Preprocessing(size, data["mean"], data["std"], data["interpolation"])
    return with_place_for_head(model), preprocessing, f"open_clip:{name}{f'/{tag}' if tag else ''}"


Weights = dict[str, Tensor]


def _timm_filter(name: str) -> Callable[[Weights, nn.Module], Weights] | None:
    """Return timm's function that fits weights to a model, or None if it has none.

    It resamples position embeddings and tables of relative positions to the model's image size. timm applies it to the
    weights that it downloads, but not to those in a file, and gives it this name in each of its modules.
    """
    module = sys.modules[timm.models.model_entrypoint(name).__module__]
    return getattr(module, "checkpoint_filter_fn", None)


def _load_file(model: nn.Module, path: str | None, fit: Callable[[Weights, nn.Module], Weights] | None = None) -> None:
    if path is None:
        return
    state = timm.models.load_state_dict(path, use_ema=False, weights_only=True)
    state = fit(state, model) if fit else state
    own = model.state_dict()
    misfits = [
        f"{name} is {tuple(state[name].shape)} in the file, but {tuple(own[name].shape)} in the model"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if misfits:
        more = f" and {len(misfits) - 5} more" if len(misfits) > 5 else ""
        raise ValueError(f"{path} is of another model or image size: {'; '.join(misfits[:5])}{more}")
    missing, unexpected = model.load_state_dict(state, strict=False)
    _check_missing(model, missing, path, unexpected)


def _check_missing(model: nn.Module, missing: Iterable[str], where: str, others: Iterable[str] = ()) -> None:
    """Check that weights cover everything that stays frozen, which would otherwise keep random values unnoticed.

    Args:
        model: The model the weights are loaded into.
        missing: Parameters that the weights don't have.
        where: Where the weights are from, for messages.
        others: Weights that the model has no parameters for.

    Raises:
        ValueError: If more is missing than the final norms and the head, which the adapter trains or replaces.
    """
    own = _at_the_end(model)
    frozen = sorted(name for name in missing if name.rpartition(".")[0] not in own)
    if frozen:
        more = f" and {len(frozen) - 5} more" if len(frozen) > 5 else ""
        unexpected = f" and has unexpected weights {sorted(others)[:5]}" if others else ""
        raise ValueError(
            f"{where} lacks {frozen[:5]}{more}{unexpected}: the backbone would be frozen at random values"
        )
    norms = sorted(name for name in missing if is_norm(model.get_submodule(name.rpartition(".")[0])))
    if norms:
        fresh = "the final norm starts with the initial values, scale 1 and bias 0, and is trained with the adapter."
        warnings.warn(f"{where} lacks {', '.join(norms)}: {fresh}", stacklevel=2)


def _at_the_end(model: nn.Module) -> list[str]:
    """Return the head, if there is one, and the norms that follow all other layers with parameters, by name."""
    learned = [(n, m) for n, m in model.named_modules() if is_norm(m) or any(True for _ in m.parameters(False))]
    found: list[str] = []
    for name, module in reversed(learned):
        is_head = not found and isinstance(module, nn.Linear)
        if not is_head and not is_norm(module):
            break
        found.append(name)
    return found


def _from_transformers(name: str, source: Source) -> tuple[nn.Module, Preprocessing]:
    if source.weights or source.random_weights:
        raise ValueError(
            f"transformers loads {name} with its own weights. Leave out weights and random_weights (--weights, "
            "--random-weights)."
        )
    if not Path(name).is_dir() and (len(Path(name).parts) != 2 or name.startswith(".")):
        raise ValueError(f"{name} is neither a folder nor a Hub id, OWNER/NAME. Give one of them with --model.")
    kind = getattr(transformers, source.model_class or "AutoModelForImageClassification", None)
    if kind is None:
        raise ValueError(
            f"transformers has no class {source.model_class!r} to load {name} with. Give the name of another."
        )
    try:
        revision = source.revision or "main"
        model, loading = kind.from_pretrained(name, revision=revision, output_loading_info=True)
        _check_missing(model, loading["missing_keys"], name, loading["unexpected_keys"])
        preprocessing = _preprocessing_of(transformers.AutoImageProcessor.from_pretrained(name, revision=revision))
    except (OSError, ValueError) as error:
        raise ValueError(f"transformers cannot load {name!r} as a backbone: {error}") from error
    if Path(name).is_dir():
        model.name_or_path = str(Path(name).resolve())  # valid in any working directory
    return _resized(model, preprocessing, source)


def _resized(model: nn.Module, preprocessing: Preprocessing, source: Source) -> tuple[nn.Module, Preprocessing]:
    if source.image_size is None:
        return model, preprocessing
    set_image_size(model, source.image_size, preprocessing.size)
    return model, replace(preprocessing, size=(source.image_size,) * 2)


def _preprocessing_of(processor: Any) -> Preprocessing:
    """Return the preprocessing of a transformers image processor.

    Raises:
        ValueError: If :class:`Preprocessing` cannot express it.
    """
    if getattr(processor, "do_flip_channel_order", False):
        raise ValueError(
            "its image processor swaps the red and blue channels, which is not supported. Use another model"
        )
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    side = size.get("shortest_edge", size.get("height")), size.get("shortest_edge", size.get("width"))
    # torchvision has no Lanczos for tensors: bicubic replaces it
    resample = 2 if processor.resample is None else int(processor.resample)
    resampling = {0: "nearest", 1: "bicubic", 3: "bicubic"}.get(resample, "bilinear")
    plain = not getattr(processor, "do_normalize", True)
    mean, std = ((0.0,) * 3, (1.0,) * 3) if plain else (processor.image_mean, processor.image_std)
    # the processor normalizes pixels times this factor, Preprocessing pixels divided by 255
    factor = 255 * (processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0)
    return Preprocessing(side, [value / factor for value in mean], [value / factor for value in std], resampling)
