"""The features of clips: what the head of an adapted model receives, or its last tokens."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.backbone import Inspection
from peft_aim.clips.fold import by_frame, per_clip
from peft_aim.clips.frames import ClipShape, Frames
from peft_aim.tracing import Layout, first_tensor, tensors_in, tokens_given, uncompiled

POOL_THEM = "Pool the tokens yourself: model.features(clips, tokens=True)"


@torch.compiler.disable
def features(adapted: Any, *args: Any, tokens: bool = False, **kwargs: Any) -> Tensor:
    """Return the features of clips: what the head of the model, or of the active adapter, receives.

    They are averaged over frames, as scores are, so that a linear head returns the scores for them. A linear layer at
    the end counts as the head, also if it is a projection; without one, the features are the output of the model, if
    that is one vector per image. Gradients flow through them. With adapters disabled, they are those of the backbone.
    Compiled models run uncompiled.

    Args:
        adapted: The model: call this as ``model.features(clips)``.
        args: The clips and further arguments, as of the part of the model that takes images.
        tokens: Whether to return the tokens of all frames after the last block, normalized if the model normalizes
            all of them.
        kwargs: Further arguments by name.

    Shape:
        ``(B, T, C, H, W) -> (B, D)``; with ``tokens=True``, ``(B, T, N, D)``. The N tokens of a frame are in the order
        of the model, with its class tokens and registers.

    Raises:
        ValueError: If the model has no such features or tokens, with what was observed.

    Example:
        >>> from peft import get_peft_model
        >>> from peft_aim import AIMConfig
        >>> from torchvision.models import VisionTransformer
        >>> backbone = VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16)
        >>> model = get_peft_model(backbone, AIMConfig(num_frames=4, num_labels=5))
        >>> clips = torch.randn(2, 4, 3, 32, 32)
        >>> model.features(clips).shape, model.features(clips, tokens=True).shape
        (torch.Size([2, 8]), torch.Size([2, 4, 5, 8]))
    """
    model, clips = adapted.model, adapted.model.aim_clips
    found: Inspection = clips.inspection
    tower, kind = model.get_submodule(found.tower), type(model).__name__
    if tokens and isinstance(found.last_tokens, str):
        raise ValueError(f"{kind} has no tokens (B, T, N, D): {found.last_tokens}. Use model.features(clips).")
    if not tokens and found.last_layer is None:
        return _pooled(tower(*args, **kwargs), kind, found.on_pooled)
    name = found.last_tokens[0] if tokens else found.last_layer
    with uncompiled, _Watched(name, model.get_submodule(name), clips.frames, outputs=tokens) as watched:
        tower(*args, **kwargs)
    tensor, shape = watched.last()
    if tokens:
        result = _of_frames(tensor, found.last_tokens[1], shape)
    else:
        result = per_clip(tensor.flatten(0, -2), shape.clips, shape.frames, shape.averaged)
    clips.frames.await_backward(shape, result)
    return result


def _of_frames(tokens: Tensor, layout: Layout, shape: ClipShape) -> Tensor:
    """Return tokens of images, split into patch groups or not, as ``(B, T, N, D)``."""
    tokens = layout.batch_first(tokens).flatten(1, -2)  # (B*T*G, N, D)
    shape.check(tokens, layout.groups)
    return by_frame(tokens.unflatten(0, (-1, layout.groups)).flatten(1, 2), shape.clips, shape.frames)


def _pooled(output: Any, kind: str, linear: tuple[str, ...]) -> Tensor:
    """Return the one tensor ``(B, D)`` in the output of a model without a head.

    Raises:
        ValueError: If there is none, or several, or if they are class scores.
    """
    if (isinstance(output, Mapping) and "logits" in output) or (isinstance(output, Tensor) and linear):
        made = f", but made of the output of {' and '.join(linear)}" if linear else ""
        raise ValueError(
            f"{kind} has no head whose input could be the features (B, D): its scores are not the output of one "
            f"linear layer{made}. {POOL_THEM}, or build the model without a head (num_classes=0 in timm)."
        )
    found = list(tensors_in(output))
    vectors = [tensor for tensor in found if tensor.ndim == 2 and tensor.is_floating_point()]
    if len(vectors) != 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in found)
        what = "several of which have" if vectors else "none of which has"
        raise ValueError(f"{kind} returns tensors {shapes}, {what} the shape (B, D) of features. {POOL_THEM}.")
    return vectors[0]


class _Watched:
    """Notes what a module takes or returns in a call of the model by this thread.

    Args:
        name: Name of the module.
        module: The module.
        frames: What knows the shape of the clips of a call.
        outputs: Whether to note what it returns; otherwise what it takes.
    """

    def __init__(self, name: str, module: nn.Module, frames: Frames, outputs: bool) -> None:
        self._name, self._module, self._frames, self._outputs = name, module, frames, outputs
        self._thread, self._records = threading.get_ident(), torch.is_grad_enabled()
        self._found: tuple[Tensor, ClipShape, bool] | None = None

    def __enter__(self) -> _Watched:
        if self._outputs:
            self._handle = self._module.register_forward_hook(lambda _, args, output: self._note(first_tensor(output)))
        else:
            taken = lambda module, args, kwargs: self._note(tokens_given(module, args, kwargs))
            self._handle = self._module.register_forward_pre_hook(taken, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _note(self, tensor: Tensor) -> None:
        is_pooled = self._outputs and tensor.ndim == 2  # some models call their final norm a second time, on these
        if threading.get_ident() == self._thread and not is_pooled:
            self._found = tensor, self._frames.call, torch.is_grad_enabled()

    def last(self) -> tuple[Tensor, ClipShape]:
        """Return what was noted in the last call of the module, and the shape of the clips.

        Raises:
            ValueError: If it was not called, or without gradients where the call of the model records them.
        """
        if self._found is None:
            raise ValueError(f"{self._name} was not called, so its features are not known. {POOL_THEM}.")
        tensor, shape, records = self._found
        if self._records and not records:
            raise ValueError(
                f"{self._name} ran without gradients, since reentrant gradient checkpointing is on, so they would not "
                "reach the adapter. Use use_reentrant=False, or torch.no_grad() if you need none."
            )
        return tensor, shape
