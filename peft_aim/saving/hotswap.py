"""Hot swapping: replace the weights of a loaded adapter in place, without recompiling the model."""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.utils import load_peft_weights
from torch import Tensor, nn

from peft_aim.config import AIMConfig
from peft_aim.layers import AIMTunerLayer
from peft_aim.saving.frozen import compare_backbone
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
    """Replace a loaded adapter with a saved one in place, as ``peft.utils.hotswap`` does for LoRA.

    Modules and parameters are kept, so a compiled model is not recompiled, unless the new adapter has another
    ``scale`` or, in training, another ``drop_path``, ``head_dropout`` or ``recompute``.

    Args:
        model: A PeftModel from ``get_peft_model`` or ``PeftModel.from_pretrained``; it may be compiled.
        model_name_or_path: Folder or Hub id of the saved adapter.
        adapter_name: Name of the loaded adapter to replace; the new adapter gets this name.
        torch_device: Device to load the weights to, by default that of the loaded adapter.
        subfolder: Subfolder of the folder or repository.
        revision: Branch, tag or commit on the Hub.
        token: Access token for private repositories on the Hub.

    Raises:
        ValueError: If the saved weights differ from the loaded ones in names or shapes (other blocks, bottlenecks,
            number of frames or classes, another ``temporal_embedding`` or ``temporal_conv``), if they are not of an
            AIM adapter or cannot be downloaded, if only one of the two is causal, or if the model has no adapter of
            this name. The model is then unchanged.

    Warns:
        UserWarning: If the saved adapter was trained on another backbone.

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
    loaded = model.peft_config.get(adapter_name) if isinstance(model, PeftModel) else None
    if not isinstance(loaded, AIMConfig):
        kinds = {name: config.peft_type.value for name, config in getattr(model, "peft_config", {}).items()}
        raise ValueError(
            f"{type(model).__name__} has no AIM adapter {adapter_name!r} to replace; its adapters are {kinds}. Pass "
            "the name of an AIM adapter as adapter_name, or load one with PeftModel.from_pretrained first."
        )
    hub = {"subfolder": subfolder, "revision": revision, "token": token}
    hub = {name: value for name, value in hub.items() if value is not None}
    config = AIMConfig.from_pretrained(model_name_or_path, **hub)
    tensors = adapter_weights(model, adapter_name)
    device = next(iter(tensors.values())).device
    if device.type == "meta":
        raise ValueError(f"The adapter {adapter_name!r} is on the device 'meta'. Load its weights first.")
    if config.causal != loaded.causal:
        raise ValueError(
            f"{model_name_or_path} has causal={config.causal}, but the adapter {adapter_name!r} has "
            f"causal={loaded.causal}. Load it under another name instead: "
            f"model.load_adapter({str(model_name_or_path)!r}, 'other'), "
            "model.set_adapter('other')."
        )
    config.fetch_weights()
    check_fits(tensors, saved_shapes(config.folder), model_name_or_path)
    weights = load_peft_weights(config.folder, torch_device or str(device))
    with torch.no_grad():
        for name, tensor in weights.items():
            tensors[plain(name)].copy_(tensor)
    config.inference_mode, config.branches = loaded.inference_mode, loaded.branches
    model.peft_config[adapter_name] = config
    for module in model.modules():
        if isinstance(module, AIMTunerLayer) and adapter_name in module.adapters:
            module.configure(adapter_name, config)
    if config.backbone_fingerprint != loaded.backbone_fingerprint:
        # Last, since its warning may be turned into an error.
        compare_backbone(model, adapter_name, config.backbone_fingerprint)


def check_fits(tensors: dict[str, Tensor], found: Shapes, source: str) -> None:
    """Check that saved weights have the names and shapes of loaded ones.

    Raises:
        ValueError: If they do not.
    """
    try:
        check_shapes(shapes_of(tensors), found, source)
    except ValueError as error:
        raise ValueError(
            f"{error} A hot swap needs the same blocks, widths, frames and classes, and the same parts of the "
            "temporal adapters. Load this adapter under another name instead: "
            f"model.load_adapter({str(source)!r}, 'other'), model.set_adapter('other')."
        ) from None
