"""Another adapter's weights in the place of one that is in use: nothing is built, so nothing is compiled again."""

from __future__ import annotations

import os

import torch
from peft import PeftConfig, PeftModel
from peft.utils import load_peft_weights
from torch import Tensor, nn

from peft_aim.config import AIMConfig
from peft_aim.layers import AIMTunerLayer
from peft_aim.saving.weights import Shapes, adapter_weights, check_shapes, plain, saved_shapes, shapes_of


def hotswap_adapter(
    model: nn.Module,
    model_name_or_path: str,
    adapter_name: str = "default",
    torch_device: str | None = None,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> None:
    """Load a saved adapter into the place of a loaded one, as ``peft.utils.hotswap`` does for LoRA.

    Modules and parameters stay where they are, so that a compiled model is not compiled again, unless the new adapter
    has another ``scale`` or, where it trains, another ``drop_path``, ``head_dropout`` or ``recompute``.

    Args:
        model: What ``get_peft_model`` or ``PeftModel.from_pretrained`` made, or that compiled.
        model_name_or_path: Folder of the adapter, or its name on the Hub.
        adapter_name: The loaded adapter whose place it takes, and whose name it then goes by.
        torch_device: Where its weights are read to; by default where the adapter is.
        subfolder: Where in the folder or repository it is.
        revision: Branch, tag or commit on the Hub.
        token: For private repositories on the Hub.

    Raises:
        ValueError: If the weights have other names or shapes than those in place (other blocks, bottlenecks, number of
            frames or classes), if it is no AIM adapter, or if there is none of this name. Nothing is changed then.

    Warns:
        UserWarning: If it was trained on another backbone.

    Example:
        >>> import tempfile
        >>> from peft import get_peft_model
        >>> from torchvision.models import VisionTransformer
        >>> backbone = VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16)
        >>> model = get_peft_model(backbone, AIMConfig(num_labels=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     hotswap_adapter(model, folder)
    """
    model = getattr(model, "_orig_mod", model)
    place = model.peft_config.get(adapter_name) if isinstance(model, PeftModel) else None
    if not isinstance(place, AIMConfig):
        kinds = {name: config.peft_type.value for name, config in getattr(model, "peft_config", {}).items()}
        raise ValueError(
            f"{type(model).__name__} has no AIM adapter {adapter_name!r} whose place another could take, but {kinds}. "
            "Name one of AIM's with adapter_name=, or make a PeftModel with PeftModel.from_pretrained first."
        )
    hub = {"subfolder": subfolder, "revision": revision, "token": token}
    hub = {name: value for name, value in hub.items() if value is not None}
    config = PeftConfig.from_pretrained(model_name_or_path, **hub)
    if not isinstance(config, AIMConfig):
        raise ValueError(f"{model_name_or_path} is an adapter of {config.peft_type.value}, not of AIM.")
    places = adapter_weights(model, adapter_name)
    device = next(iter(places.values())).device
    if device.type == "meta":
        raise ValueError(f"The adapter {adapter_name!r} has no memory yet: it is on 'meta'. Load its weights first.")
    check_fits(places, saved_shapes(os.path.join(model_name_or_path, subfolder or "")), model_name_or_path)
    weights = load_peft_weights(model_name_or_path, torch_device or str(device), **hub)
    check_fits(places, shapes_of(weights), model_name_or_path)
    with torch.no_grad():
        for name, tensor in weights.items():
            places[plain(name)].copy_(tensor)
    config.inference_mode, config.branches = place.inference_mode, place.branches
    model.peft_config[adapter_name] = config
    for module in model.modules():
        if isinstance(module, AIMTunerLayer) and adapter_name in module.adapters:
            module.configure(adapter_name, config)
    if config.backbone_fingerprint != place.backbone_fingerprint:
        model.base_model.compare_backbone(adapter_name)  # last: it may warn, and warnings be errors


def check_fits(places: dict[str, Tensor], found: Shapes | None, source: str) -> None:
    """Check that saved weights, if they are on this machine, fit into the place of others.

    Raises:
        ValueError: If not, or if the file is broken or not there.
    """
    if found is None:
        return
    try:
        check_shapes(shapes_of(places), found, source)
    except ValueError as error:
        raise ValueError(
            f"{error} A hot swap takes the same blocks, widths, frames and classes; others can be loaded beside it: "
            f"model.load_adapter({str(source)!r}, 'other'), model.set_adapter('other')."
        ) from None
