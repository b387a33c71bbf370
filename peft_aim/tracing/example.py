"""Makes the example images on which a model is inspected, preprocessed by transformers where a model needs it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from peft_aim.tracing.outputs import Images, first_parameter
from peft_aim.tracing.packed import computing_weight


def blank_images(model: nn.Module) -> Iterator[Images]:
    """Iterate over candidates for the arguments that pass two blank images to a model, by name.

    Most models take ``(2, C, H, W)``; a few take patches with a mask and a grid (SigLIP 2).
    """
    weight = computing_weight(model)
    like = torch.empty(0, dtype=weight.dtype, device=runs_on(model) or weight.device)
    for (height, width), channels in itertools.product(_image_sizes(model), _channels(model)):
        images = torch.zeros(2, channels, height, width, device=like.device, dtype=like.dtype)
        yield {first_parameter(model): images}
    if like.device.type != "meta":
        yield from _preprocessed(model, like)


def runs_on(model: nn.Module) -> torch.device | None:
    """Return the device to which accelerate moves a part of a model while it runs, None if its weights stay in place.

    The weights of a model on several devices, or offloaded to memory or disk, are on the device "meta" meanwhile.

    Example:
        >>> from accelerate import cpu_offload
        >>> runs_on(nn.Linear(1, 1)), runs_on(cpu_offload(nn.Linear(1, 1), torch.device("cpu")))
        (None, device(type='cpu'))
    """
    hooks = [getattr(module, "_hf_hook", None) for module in model.modules()]
    each = [part for hook in hooks for part in getattr(hook, "hooks", [hook])]  # several in a sequence
    devices = [getattr(hook, "execution_device", None) for hook in each]
    return next((torch.device(device) for device in devices if device is not None), None)


def drawn(images: Images) -> Images:
    """Return the same arguments for random images."""
    name, first = next(iter(images.items()))
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(first)
    return {**images, name: noise}


def image_size(model: nn.Module) -> tuple[int, int]:
    """Return the image height and width that a model declares first, 224 x 224 if it declares none."""
    return _image_sizes(model)[0]


def _image_sizes(model: nn.Module) -> list[tuple[int, int]]:
    """Return all image sizes that a model declares: a part of it may name the size that it was pretrained on."""
    found = [getattr(module, name, None) for module in model.modules() for name in ("img_size", "image_size")]
    config = getattr(model, "config", None)
    nested = [getattr(config, name) for name in getattr(type(config), "sub_configs", {}) if hasattr(config, name)]
    found += [getattr(part, "image_size", None) for part in (config, *nested)]
    found.append((getattr(model, "pretrained_cfg", None) or {}).get("input_size"))
    sizes = [(size, size) if isinstance(size, int) and not isinstance(size, bool) else size for size in found]
    pairs = [tuple(size[-2:]) for size in sizes if isinstance(size, (tuple, list)) and len(size) >= 2]
    declared = [pair for pair in pairs if all(isinstance(side, int) for side in pair)]
    return list(dict.fromkeys(declared)) or [(224, 224)]


def _channels(model: nn.Module) -> list[int]:
    """Return candidates for the number of channels: that of the first convolution, and what the model declares."""
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    declared = getattr(model, "in_chans", getattr(getattr(model, "config", None), "num_channels", None))
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    found = [stem.in_channels if stem else None, declared, size[0] if size else 3]
    return list(dict.fromkeys(channels for channels in found if channels))


def _preprocessed(model: nn.Module, like: Tensor) -> Iterator[Images]:
    """Preprocess two blank images with transformers' image processor for the model, if it has one."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    config = getattr(model, "config", None)
    vision = getattr(config, "vision_config", config)
    whole = [c for c in IMAGE_PROCESSOR_MAPPING if type(config) in (c, _vision_config(c))]
    patch, count = getattr(vision, "patch_size", None), getattr(vision, "num_patches", None)
    if not whole or not isinstance(patch, int) or not isinstance(count, int):
        return
    processor = IMAGE_PROCESSOR_MAPPING[whole[0]]["torchvision"](patch_size=patch, max_num_patches=count)
    pictures = [torch.zeros(3, 2 * patch, 2 * patch, dtype=torch.uint8)] * 2
    made = processor(images=pictures, return_tensors="pt")
    yield {name: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype) for name, t in made.items()}


def _vision_config(config_class: type) -> type | None:
    """Return the config class of a model's image tower."""
    return getattr(config_class, "sub_configs", {}).get("vision_config")
