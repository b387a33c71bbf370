"""What AIM is compared with: other ways to make an image model score clips, all of one signature.

Each takes an image model, whose scores come as a tensor from a linear layer or from an identity in its place (timm's
do), may change it, and returns a module that maps clips ``(B, T, C, H, W)`` to scores ``(B, K)``. The head is fresh,
and before training all score as the image model does, averaged over frames. Trained is what asks for gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from peft_aim import AIMConfig
from peft_aim.backbone import Anatomy, Inspection, PartNames, inspect_backbone
from peft_aim.layers import add_temporal_embedding, from_time, initialize, to_time
from peft_aim.tracing import first_tensor


class OverFrames(nn.Module):
    """An image model on clips: every frame on its own, scores averaged. Blind to the order of frames if the model is.

    Args:
        model: The image model.
        fresh: Parameters that start afresh in a model that is otherwise pretrained and trained as a whole.

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
        """Score clips."""
        return self.model(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)


class Divided(nn.Module):
    r"""A block after attention along time: TimeSformer's divided space-time attention (arXiv 2102.05095).

    .. math::
        x \leftarrow x + \mathrm{fc}(\mathrm{attn}_T(\mathrm{norm}_T(x)))

    comes before the block's own forward. Unlike in TimeSformer, the class token of each frame attends along time as
    all other places do, so that the readout is the image model's.

    Args:
        block: The block; attention and norm along time start as copies of its own, fc at zero.
        anatomy: Its parts.
        frames: Frames T per clip.
        enters: Whether tokens enter the model here, and get the temporal embedding, which starts at zero.

    Raises:
        ValueError: If the block's norm or channels don't come where this expects them.
    """

    def __init__(self, block: nn.Module, anatomy: Anatomy, frames: int, enters: bool) -> None:
        super().__init__()
        if not anatomy.norm_first or anatomy.channels != -1 or anatomy.norm_channels != -1:
            raise ValueError(
                f"A {type(block).__name__} has its norm behind the attention, or tokens whose last axis isn't "
                "the channels. Take an image model with norms first and tokens (B, N, D)."
            )
        self.block, self.anatomy, self.frames = block, anatomy, frames
        self.norm = nn.Identity() if anatomy.norm1 is None else copy.deepcopy(block.get_submodule(anatomy.norm1))
        self.attention = copy.deepcopy(block.get_submodule(anatomy.attention))
        self.fc = nn.Linear(anatomy.width, anatomy.width)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.embedding = nn.Parameter(torch.zeros(1, frames, anatomy.width)) if enters else None

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run on tokens ``(B*T, *N, D)``; further arguments are the block's own."""
        groups = self.anatomy.groups
        if self.embedding is not None:
            tokens = add_temporal_embedding(tokens, self.embedding, self.frames, groups)
        along_time = to_time(self.norm(tokens), self.frames, groups)  # (B*N, T, D)
        mixed = first_tensor(self.anatomy.attend(self.attention, along_time))
        tokens = tokens + self.fc(from_time(mixed, tokens, groups))
        return self.block(tokens, *args, **kwargs)


def frozen(backbone: nn.Module, classes: int) -> PeftModel:
    """The frozen image model and a linear head, over averaged frames."""
    nothing = {"spatial": False, "temporal": False, "joint": False, "temporal_embedding": False}
    return get_peft_model(backbone, AIMConfig(num_labels=classes, **nothing))


def aim(backbone: nn.Module, classes: int, frames: int, **options: Any) -> PeftModel:
    """AIM, with options of :class:`~peft_aim.AIMConfig`."""
    return get_peft_model(backbone, AIMConfig(num_frames=frames, num_labels=classes, **options))


def lora(backbone: nn.Module, classes: int, parameters: int) -> OverFrames:
    """LoRA (arXiv 2106.09685) on all linear layers of the blocks, over averaged frames.

    Args:
        backbone: The image model.
        classes: Number of classes K.
        parameters: How many parameters to train: the rank is the one that comes nearest.
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
    # alpha = rank: a factor of 1, so that the learning rate alone says how far the layers move
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(linear), modules_to_save=[found.head])
    return OverFrames(get_peft_model(backbone, config))


def full(backbone: nn.Module, classes: int) -> OverFrames:
    """Full fine-tuning of the image model, over averaged frames."""
    head = new_head(backbone, inspect_backbone(backbone, PartNames()), classes)
    return OverFrames(backbone.requires_grad_(), head.parameters())


def divided(backbone: nn.Module, classes: int, frames: int) -> OverFrames:
    """Full fine-tuning with divided space-time attention in every block."""
    found = inspect_backbone(backbone, PartNames())
    fresh = [*new_head(backbone, found, classes).parameters()]
    for name, anatomy in found.blocks.items():
        block = Divided(backbone.get_submodule(name), anatomy, frames, enters=name in found.entries)
        backbone.set_submodule(name, block)
        fresh += [*block.fc.parameters(), *([] if block.embedding is None else [block.embedding])]
    return OverFrames(backbone.requires_grad_(), fresh)


def new_head(model: nn.Module, found: Inspection, classes: int) -> nn.Linear:
    """Put a fresh linear head, as AIM's own starts, in the place of the model's, and return it."""
    if found.head is None:
        raise ValueError(f"The scores of {type(model).__name__} don't come from a last layer. Give it a linear head.")
    head = nn.Linear(found.features, classes)
    initialize(head)
    model.set_submodule(found.head, head)
    return head


def trained_parameters(model: nn.Module) -> int:
    """Count the parameters that are trained.

    Example:
        >>> trained_parameters(nn.Linear(2, 3))
        9
    """
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
