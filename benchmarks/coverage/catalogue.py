"""The image transformers of four libraries, built small with random weights and the same structure.

One rule reduces all of them, :func:`benchmarks.coverage.shrink.smaller`. ``python -m benchmarks.coverage.catalogue
[library ...]`` builds and runs every entry.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import open_clip
import timm
import torch
import torchvision
import transformers as tf
from open_clip.model import _build_vision_tower
from timm.models import _builder as timm_builder
from timm.models import vision_transformer_hybrid, vitamin
from timm.models._registry import _model_to_module
from timm.models.vision_transformer_hybrid import ConvStem
from timm.models.vitamin import MbConvStages, VitCfg
from torch import Tensor, nn

from benchmarks.coverage import home_made
from benchmarks.coverage.shrink import SIZES, flat, small_config, smaller, words
from peft_aim.tracing import first_parameter, run

LIBRARIES = ("timm", "transformers", "towers", "torchvision", "open_clip", "home_made")
LISTS = Path(__file__).parent / "models"
CLASSES = 5  # of a small model


CLASSIFIERS = words("""
beit clip data2vec-vision deit dinov2 dinov2_with_registers ijepa metaclip_2 siglip siglip2 vit vit_msn swin swinv2
segformer hiera donut-swin pvt pvt_v2 cvt mobilevit mobilevitv2 swiftformer levit imagegpt perceiver dinat
shieldgemma2
""")


# Temperatures and RoPE frequencies are meaningful only near their initial values.
NEAR_INIT = words("temperature logit_scale logit_bias tau freqs lambda")

# Exceptions to the rule, by module of timm or model type of transformers.
TWEAKS: dict[str, dict[str, object]] = {
    "efficientformer": {"num_vit": 1},  # one of two blocks would pool
    "efficientformer_v2": {"num_vit": 1},
    "nextvit": {"depths": (1, 2, 5, 2)},  # its third stage comes in groups of five
    "vitamin": {"embed_dim": 128, "num_heads": 2},  # as wide as the stem narrowed by `_small_timm`
    "convit": {"embed_dim": 24, "local_up_to_layer": 1},  # width of one head; one block of each kind
    "beit": {"use_relative_position_bias": True},
    "data2vec-vision": {"use_relative_position_bias": True},
    "bridgetower": {"hidden_size": 128},  # heads of 64
    "cvt": {"depth": [1, 2, 3]},  # the drop rate of the third stage is read from its third block
    "shieldgemma2": {"mm_tokens_per_image": 4, "yes_token_index": 1, "no_token_index": 2},
    "llama4": {"intermediate_size": 384},  # four patches merged, as in the published models
    "perceiver": {"d_latents": 128, "num_latents": 16},
    "levit": {"img_size": 128},  # a total stride of 64 leaves 2 x 2 tokens in the last stage
}


# ---- all libraries: the first size that runs ----


def _first_that_runs(make: Callable[[int, int], nn.Module], sizes: list[int]) -> nn.Module:
    """Return ``make(level, size)`` for the most reduced level and the smallest size whose forward pass runs."""
    errors = []
    for level in (2, 1):
        for size in sizes:
            try:
                model = make(level, size).eval()
                with torch.no_grad():  # not inference_mode: some models cache tensors here
                    call(model, torch.randn(2, 3, size, size))
            except ImportError:
                raise
            except Exception as error:  # constructors and forward passes raise anything for unsupported sizes
                errors.append(f"level {level}, {size} pixels: {error!r:.300}")
            else:
                model.catalogue = {"level": level, "image_size": size, "errors": errors}
                return model
    raise RuntimeError("\n".join(errors))


def _sizes(options: Mapping[str, object], family: str) -> list[int]:
    """Return image sizes to try: four patches per side or 64 pixels, then larger ones up to the published size."""
    patch = max(flat(options.get("patch_size") or 1))
    full = next((max(flat(options[name])) for name in SIZES if options.get(name)), 224)
    least = TWEAKS.get(family, {}).get("img_size", 4 * patch if patch > 12 else 64)
    return list(dict.fromkeys([least, *(size for size in (96, 128, full // 2, 192, 224, full) if size > least)]))


@contextlib.contextmanager
def _replaced(attributes: list[tuple[object, str]], new: object) -> Iterator[None]:
    """Temporarily replace attributes of modules with ``new``."""
    old = [getattr(module, name) for module, name in attributes]
    for module, name in attributes:
        setattr(module, name, new)
    try:
        yield
    finally:
        for (module, name), value in zip(attributes, old, strict=True):
            setattr(module, name, value)


# ---- timm ----


def _defaults(constructor: Callable) -> dict[str, object]:
    """Return the options of a constructor with their defaults, including those passed to parent classes."""
    classes = constructor.__mro__[::-1] if isinstance(constructor, type) else ()
    parameters = {k: p for c in classes if "__init__" in vars(c) for k, p in inspect.signature(c).parameters.items()}
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def _construct(model_cls: Callable, family: str, **options: object) -> nn.Module:
    """Build the smallest version of a timm model that runs."""
    known = {**_defaults(model_cls), **options}
    tweaks = {name: value for name, value in TWEAKS.get(family, {}).items() if name in known}

    def make(level: int, size: int) -> nn.Module:
        changes = {**smaller(known, level), **(tweaks if level == 2 else {})}
        return model_cls(**{**options, **changes, **({"img_size": size} if "img_size" in known else {})})

    return _first_that_runs(make, _sizes(known, family))


def _build_small(model_cls: Callable, variant: str, pretrained: bool = False, **options: object) -> nn.Module:
    """Replacement for timm's ``build_model_with_cfg`` that builds small models."""
    family = _model_to_module.get(variant, "")
    model = timm_builder.build_model_with_cfg(
        functools.partial(_construct, model_cls, family), variant, False, **options
    )
    size = getattr(model, "catalogue", {"image_size": 224})["image_size"]
    # without the name and the source of the weights, so that models of the same structure are equal
    model.pretrained_cfg = model.default_cfg = {"input_size": (3, size, size)}
    return model


def _small_vitamin_stem(cfg: VitCfg, **options: object) -> nn.Module:
    widths = tuple(width * 128 // cfg.embed_dim[-1] // 8 * 8 for width in cfg.embed_dim)
    return MbConvStages(dataclasses.replace(cfg, embed_dim=widths, depths=(1, 1, 1), stem_width=widths[0]), **options)


def _small_conv_stem(channels: tuple[int, ...], **options: object) -> nn.Module:
    return ConvStem(channels=tuple(width * 128 // channels[-1] for width in channels), **options)


@contextlib.contextmanager
def _small_timm() -> Iterator[None]:
    """Make timm build small models. Every family imports the builder by name, so it is replaced in each module."""
    original = timm_builder.build_model_with_cfg
    modules = [
        m for m in list(sys.modules.values()) if isinstance(m, ModuleType) and m.__name__.startswith("timm.models.")
    ]
    users = [m for m in modules if vars(m).get("build_model_with_cfg") is original and m is not timm_builder]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced([(m, "build_model_with_cfg") for m in users], _build_small))
        # These stems are built before the builder is called, and must be as wide as the trunk.
        stack.enter_context(_replaced([(vitamin, "MbConvStages")], _small_vitamin_stem))
        stack.enter_context(_replaced([(vision_transformer_hybrid, "ConvStem")], _small_conv_stem))
        yield


def _timm(name: str) -> nn.Module:
    with _small_timm():
        return timm.create_model(name, num_classes=CLASSES)


# ---- transformers ----


def _transformers(model_cls: type, model_type: str, config: tf.PretrainedConfig, **options: object) -> nn.Module:
    vision = getattr(config, "vision_config", None) or config
    known = {name: getattr(vision, name, None) for name in (*SIZES, "patch_size")}

    def make(level: int, size: int) -> nn.Module:
        changes = {**options, **TWEAKS.get(model_type, {})}
        return model_cls(small_config(config, level, size, **changes))

    return _first_that_runs(make, _sizes(known, model_type))


def _classifier(model_type: str) -> nn.Module:
    config = tf.AutoConfig.for_model(model_type)
    model_cls = tf.AutoModelForImageClassification._model_mapping[type(config)]
    model_cls = model_cls[0] if isinstance(model_cls, tuple) else model_cls  # as the Auto class chooses
    return _transformers(model_cls, model_type, config, num_labels=CLASSES)


def _tower(name: str) -> nn.Module:
    model_type, class_name = name.split()
    package = model_type.replace("-", "_")
    model_cls = getattr(tf, class_name, None) or getattr(
        importlib.import_module(f"transformers.models.{package}.modeling_{package}"), class_name
    )
    return _transformers(model_cls, model_type, model_cls.config_class())


# ---- torchvision and open_clip ----

TORCHVISION = {
    "vit": (torchvision.models.vision_transformer, "VisionTransformer"),
    "swin": (torchvision.models.swin_transformer, "SwinTransformer"),
    "maxvit": (torchvision.models.maxvit, "MaxVit"),
}


def _torchvision(name: str) -> nn.Module:
    module, class_name = TORCHVISION[name.split("_")[0]]
    original = getattr(module, class_name)

    def small(**options: object) -> nn.Module:
        size = {"image_size": 4 * options["patch_size"]} if "image_size" in options else {}
        if "input_size" in options:  # widths that differ from the 32 x 32 positions of the first stage
            size |= {"input_size": (128, 128), "block_channels": [64, 64, 128, 256]}
        return original(**{**options, **smaller(options), **size})

    with _replaced([(module, class_name)], small):
        model = torchvision.models.get_model(name, num_classes=CLASSES)
    if "maxvit" in name:  # it does not store its image size
        model.image_size = 128
    return model


def _open_clip(name: str) -> nn.Module:
    config = open_clip.get_model_config(name)
    options = config["vision_cfg"]
    if "timm_model_name" in options:
        with _small_timm():
            return _build_vision_tower(64, {**options, "image_size": None})
    head = options.get("head_width", 64)
    changes = smaller({"num_heads": options["width"] // head, **options})
    changes |= {"image_size": 4 * options["patch_size"], "attn_pooler_queries": 8, "attn_pooler_heads": 2}
    changes["width"] = 2 * head
    changes.pop("num_heads", None)
    return _build_vision_tower(64, {**options, **changes}, quick_gelu=config.get("quick_gelu", False))


# ---- the catalogue ----


def names(library: str) -> list[str]:
    """Return the names of all entries of a library."""
    if library in ("timm", "towers"):
        return (LISTS / f"{library}.txt").read_text().splitlines()
    if library == "transformers":
        return list(CLASSIFIERS)
    if library == "home_made":
        return list(home_made.MODELS)
    if library == "torchvision":
        return [
            name
            for name in torchvision.models.list_models(torchvision.models)
            if name.startswith(("vit_", "swin_", "maxvit_"))
        ]
    return [
        name for name in open_clip.list_models() if _holds_transformer(open_clip.get_model_config(name)["vision_cfg"])
    ]


def _holds_transformer(vision: dict[str, object]) -> bool:
    trunk = vision.get("timm_model_name", "")
    return not trunk.startswith("convnext") and not isinstance(vision.get("layers"), list)


def family(library: str, name: str) -> str:
    """Return the family of an entry: a module of timm, a model type of transformers, or a class."""
    if library == "timm":
        return _model_to_module[name]
    if library == "torchvision":
        return "swin_v2" if name.startswith("swin_v2") else name.split("_")[0]
    if library == "open_clip":
        trunk = open_clip.get_model_config(name)["vision_cfg"].get("timm_model_name")
        return _model_to_module[trunk] if trunk else "VisionTransformer"
    return name.split()[0]


def build(library: str, name: str) -> nn.Module:
    """Build a small version of an entry, in evaluation mode, with random weights from a fixed seed."""
    makers = {"timm": _timm, "transformers": _classifier, "towers": _tower, "torchvision": _torchvision}
    makers["home_made"] = home_made.build
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = makers.get(library, _open_clip)(name).eval()
    randomize(model)
    model.train()  # clears the bias that evaluation mode caches (LeViT)
    return model.eval()


def image_size(model: nn.Module) -> int:
    """Return the side in pixels of a model's images, from its config if available."""
    inner = getattr(model, "trunk", model)
    config = getattr(model, "config", None)
    vision = getattr(config, "vision_config", config)
    if "input_size" in (getattr(inner, "pretrained_cfg", None) or {}):
        return inner.pretrained_cfg["input_size"][-1]
    size = getattr(vision, "image_size", None) or getattr(model, "image_size", None)
    if size is None:
        size = getattr(model, "catalogue", {}).get("image_size", 128 if "MaxVit" in type(model).__name__ else 64)
    return max(flat(size))


def randomize(model: nn.Module) -> None:
    """Randomize weights whose initial values hide effects: small LayerScale; zero tables, tokens, heads and biases."""
    generator = torch.Generator().manual_seed(1)
    # A BatchNorm with initial statistics does not restore the scale that an activation reduces.
    gain = 1.5 if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()) else 1.0
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        constant = parameter.numel() > 0 and bool((parameter == parameter.flatten()[0]).all())
        shape = [size for i, size in enumerate(parameter.shape) if size > 1 or (i > 0 and parameter.shape[0] > 1)]
        if any(word in name for word in NEAR_INIT):
            new = parameter.detach() * (1 + 0.1 * noise)
        elif (parameter.ndim == 1 and name.endswith("weight")) or (constant and _is_scale(name, parameter)):
            new = 0.8 + 0.2 * noise
        elif len(shape) > 1:  # a matrix, a kernel, a table
            new = gain * noise / math.prod(shape[1:]) ** 0.5
        else:
            new = 0.2 * noise if constant else parameter.detach()
        parameter.data.copy_(new)


def _is_scale(name: str, parameter: Tensor) -> bool:
    return bool(parameter.flatten()[0] != 0) or name.endswith("gamma")  # so is a norm's weight that starts at zero


def inputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return images (B, 3, H, W) as the arguments of a model, by name."""
    kind = type(model).__name__
    if kind.startswith("Siglip2"):  # patches of P x P pixels, each flattened, and their grid
        patch, side = model.config.vision_config.patch_size, images.shape[-1]
        patches = nn.functional.unfold(images, patch, stride=patch).mT
        grid = torch.full((len(images), 2), side // patch)
        mask = torch.ones(patches.shape[:2], dtype=torch.long)
        return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": grid}
    if kind.startswith("ImageGPT"):  # pixels as token ids
        words = images[:, 0, ::8, ::8].flatten(1).mul(100).long().abs() % (model.config.vocab_size - 1)
        return {"input_ids": words}
    if kind.startswith("ShieldGemma2"):  # the image's tokens and a question
        config = model.config
        words = torch.full((len(images), config.mm_tokens_per_image + 2), config.image_token_index)
        words[:, -2:] = 5
        return {"input_ids": words, "pixel_values": images}
    return {first_parameter(model): images}


def call(model: nn.Module, images: Tensor) -> object:
    """Call a model on images (B, 3, H, W), converted to its inputs."""
    return run(model, inputs(model, images))


def tensor(output: object) -> Tensor:
    """Return the scores, or otherwise the features, of an output of any library."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        keys = ("logits", "pooler_output", "last_hidden_state", "feature_maps")
        return tensor(next((output[key] for key in keys if output.get(key) is not None), [*output.values()]))
    return tensor(output[-1])


def check(library: str, name: str) -> str:
    """Build and run an entry, and return the result as a line."""
    start = time.perf_counter()
    try:
        model = build(library, name)
    except Exception as error:
        return f"FAILED {name}: {error!r:.600}"
    seconds = time.perf_counter() - start
    size, millions = image_size(model), sum(p.numel() for p in model.parameters()) / 1e6
    first = f"{name}: {millions:.1f} M, {seconds:.2f} s, {size} px, {family(library, name)}"
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    try:
        with torch.inference_mode():
            out = tensor(call(model, images)).float()
    except Exception as error:
        return f"FAILED {first}: {error!r:.300}"
    level = getattr(getattr(model, "trunk", model), "catalogue", {"level": 2})["level"]
    change = ((out[0] - out[-1]).norm() / out[0].norm()).item()
    verdict = "ok" if out.isfinite().all() and change > 0.005 and out.abs().max() < 1e6 else "BAD"
    return f"{verdict} {first}, level {level}, {tuple(out.shape)}, change {change:.3f}, largest {out.abs().max():.2g}"


if __name__ == "__main__":
    for library in sys.argv[1:] or LIBRARIES:
        for name in names(library):
            print(library, check(library, name), flush=True)
