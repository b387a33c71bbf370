"""AIM and the methods that it is compared with, each as a function of the backbone.

The functions may modify the backbone, and return a module that maps clips ``(B, T, C, H, W)`` to scores
``(B, K)``. The backbone must return its scores as a tensor, straight from a linear layer or an identity in its place
(as timm's models do). The head is new. Before training, every method scores as the backbone averaged over frames. The
trainable parameters are those that require gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from peft_aim import AIMConfig
from peft_aim.backbone import Anatomy, Inspection, PartNames, inspect_backbone
from peft_aim.layers import add_temporal_embedding, from_time, initialize, to_time
from peft_aim.tracing import Layout, first_tensor


class OverFrames(nn.Module):
    """Average of a model's scores over the frames of a clip.

    It ignores the order of frames if the model treats each frame separately.

    Args:
        model: Maps frames ``(B*T, C, H, W)`` to scores ``(B*T, K)``.
        fresh: Newly initialized parameters of an otherwise pretrained model that is trained as a whole.

    Shape:
        ``(B, T, C, H, W) -> (B, K)``

    Example:
        >>> OverFrames(nn.Flatten())(torch.ones(2, 8, 1, 1, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(self, model: nn.Module, fresh: Iterable[nn.Parameter] = ()) -> None:
        super().__init__()
        self.model, self.fresh = model, tuple(fresh)

    def forward(self, clips: Tensor) -> Tensor:
        """Return the scores of clips."""
        return self.model(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)


class Divided(nn.Module):
    r"""A block preceded by temporal attention: TimeSformer's divided space-time attention (arXiv 2102.05095).

    .. math::
        x \leftarrow x + \mathrm{fc}(\mathrm{attn}_T(\mathrm{norm}_T(x)))

    runs before the block's own forward. Unlike in TimeSformer, the class token of each frame takes part in temporal
    attention like all other spatial positions, so that the readout stays the backbone's.

    Args:
        block: The block. The temporal attention and norm start as copies of its own, fc at zero.
        anatomy: The parts of the block.
        frames: Frames T per clip.
        enters: Whether tokens enter the model at this block, which then adds a temporal embedding, zero at the start.

    Raises:
        ValueError: If the block is not pre-norm, or its tokens are not ``(B*T, *N, D)``.
    """

    def __init__(self, block: nn.Module, anatomy: Anatomy, frames: int, enters: bool) -> None:
        super().__init__()
        usual = anatomy.tokens == replace(Layout(), groups=anatomy.tokens.groups) and anatomy.norm_tokens == Layout()
        if not (anatomy.norm_first and usual):
            raise ValueError(
                f"{type(block).__name__} is not pre-norm, or its tokens are not (B, N, D). "
                "Use a backbone with pre-norm blocks and tokens (B, N, D)."
            )
        self.block, self.anatomy, self.frames = block, anatomy, frames
        self.norm = nn.Identity() if anatomy.norm1 is None else copy.deepcopy(block.get_submodule(anatomy.norm1))
        self.attention = copy.deepcopy(block.get_submodule(anatomy.attention))
        self.fc = nn.Linear(anatomy.width, anatomy.width)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.embedding = nn.Parameter(torch.zeros(1, frames, anatomy.width)) if enters else None

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run on tokens ``(B*T, *N, D)``; other arguments are passed to the block."""
        groups = self.anatomy.tokens.groups
        if self.embedding is not None:
            tokens = add_temporal_embedding(tokens, self.embedding, self.frames, groups)
        sequences = to_time(self.norm(tokens), self.frames, groups)  # (B*N, T, D)
        mixed = first_tensor(self.anatomy.attend(self.attention, sequences))
        tokens = tokens + self.fc(from_time(mixed, tokens, groups))
        return self.block(tokens, *args, **kwargs)


# AIM's options for ST-Adapter: no other adapters, and bottlenecks half as wide as the tokens.
CONVOLUTION_ALONE = {
    "temporal": "conv",
    "spatial": False,
    "joint": False,
    "temporal_embedding": False,
    "bottleneck_ratio": 0.5,
}


AS_TRAINED = "AIM as trained by `peft-aim train`"
# Options of AIM with which attention and convolutions over time are compared.
OVER_TIME = {
    "convolution over time alone": CONVOLUTION_ALONE,
    "convolution over time + spatial + joint": {"temporal": "conv"},
    "AIM, attention and convolution over time": {"temporal_conv": True},
    AS_TRAINED: {"temporal_conv": True, "temporal_embedding": "blocks"},
}


def frozen(backbone: nn.Module, classes: int) -> PeftModel:
    """Return the frozen backbone with a linear head, averaged over frames."""
    nothing = {"spatial": False, "temporal": False, "joint": False, "temporal_embedding": False}
    return get_peft_model(backbone, AIMConfig(num_labels=classes, **nothing))


def aim(backbone: nn.Module, classes: int, frames: int, **options: Any) -> PeftModel:
    """Return AIM, with options of :class:`~peft_aim.AIMConfig`."""
    return get_peft_model(backbone, AIMConfig(num_frames=frames, num_labels=classes, **options))


def lora(backbone: nn.Module, classes: int, parameters: int) -> OverFrames:
    """Return LoRA (arXiv 2106.09685) on all linear layers of the blocks, averaged over frames.

    Args:
        backbone: The backbone.
        classes: Number of classes K.
        parameters: Number of trainable parameters to aim for; the nearest rank is used.
    """
    found = inspect_backbone(backbone, PartNames())
    new_head(backbone, found, classes)
    linear = {
        f"{name}.{inner}": module
        for name in found.blocks
        for inner, module in backbone.get_submodule(name).named_modules()
        if isinstance(module, nn.Linear)
    }
    of_rank_one = sum(module.in_features + module.out_features for module in linear.values())
    of_head = (found.features + 1) * classes
    rank = max(1, round((parameters - of_head) / of_rank_one))
    # alpha = rank gives a scale of 1, so that the learning rate alone sets how far layers move
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(linear), modules_to_save=[found.head])
    return OverFrames(get_peft_model(backbone, config))


def full(backbone: nn.Module, classes: int) -> OverFrames:
    """Return full fine-tuning of the backbone, averaged over frames."""
    head = new_head(backbone, inspect_backbone(backbone, PartNames()), classes)
    return OverFrames(backbone.requires_grad_(), head.parameters())


def divided(backbone: nn.Module, classes: int, frames: int) -> OverFrames:
    """Return full fine-tuning with divided space-time attention in every block."""
    found = inspect_backbone(backbone, PartNames())
    fresh = [*new_head(backbone, found, classes).parameters()]
    for name, anatomy in found.blocks.items():
        block = Divided(backbone.get_submodule(name), anatomy, frames, enters=name in found.entries)
        backbone.set_submodule(name, block)
        fresh += [*block.fc.parameters(), *([] if block.embedding is None else [block.embedding])]
    return OverFrames(backbone.requires_grad_(), fresh)


def new_head(model: nn.Module, found: Inspection, classes: int) -> nn.Linear:
    """Replace the model's head with a new linear layer, initialized as AIM's head, and return it."""
    if found.head is None:
        raise ValueError(f"The scores of {type(model).__name__} are not the output of a layer. Give it a linear head.")
    head = nn.Linear(found.features, classes)
    initialize(head)
    model.set_submodule(found.head, head)
    return head


def trained_parameters(model: nn.Module) -> int:
    """Count the trainable parameters.

    Example:
        >>> trained_parameters(nn.Linear(2, 3))
        9
    """
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
