"""Hooks around an image model that fold the frames of clips into the batch, and average the outputs over frames."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.backbone import Inspection
from peft_aim.clips.frames import ClipShape, Frames
from peft_aim.clips.loss import add_loss, take_labels
from peft_aim.clips.past import Continued, Past
from peft_aim.clips.per_thread import PerThread
from peft_aim.clips.turns import Turns
from peft_aim.tracing import first_argument, map_tensors, with_first_argument


class Clips:
    """Hooks with which an image model takes clips ``(B, T, C, H, W)``.

    Images ``(B, C, H, W)`` are clips of one frame. The model receives ``(B*T, C, H, W)``. Of its outputs, scores and
    pooled features ``(B*T, D)`` are averaged over frames, tokens ``(B*T, N, D)`` become ``(B, T*N, D)``, and tensors
    with more axes ``(B, T, ...)``.

    Args:
        inspection: The structure of the model.
    """

    def __init__(self, inspection: Inspection) -> None:
        self.inspection = inspection
        self.frames = Frames()
        self.turns = Turns()
        self.layers: list[Any] = []  # the blocks with adapters
        self._labels = PerThread()

    def attach(self, model: nn.Module) -> None:
        """Register the hooks on the part of a model that takes images.

        They are bound methods, which, unlike closures, can be copied and pickled.
        """
        tower = model.get_submodule(self.inspection.tower)
        self._arguments = list(inspect.signature(tower.forward).parameters)
        self._frozen_norms = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
        self._trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._handles = [
            tower.register_forward_pre_hook(self._enter, with_kwargs=True),
            tower.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
        ]

    def detach(self, model: nn.Module) -> None:
        """Remove the hooks from a model without adapters, and restore which of its parameters are trainable."""
        for handle in self._handles:
            handle.remove()
        for norm in self._frozen_norms:
            norm.train(model.training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._trainable)

    def _enter(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self.frames.begin(None)
        if getattr(model, "_is_replica", False):
            raise ValueError(
                "nn.DataParallel copies a model without the hooks of its adapters. Use one process per device instead "
                "(accelerate launch, torchrun), or a single device (CUDA_VISIBLE_DEVICES=0)."
            )
        if not torch.compiler.is_compiling():
            self.turns.begin_call()
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                f"adapter_names={kwargs['adapter_names']!r} needs a PeftModel, as get_peft_model returns it, but "
                f"{type(model).__name__} was called itself. Call model.set_adapter(name) and the model, once per "
                "adapter."
            )
        clips, past = self._given(args, kwargs)
        self._check(clips)
        if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
            warnings.warn(
                "The old ONNX exporter (dynamo=False) makes the shape of these clips part of the model: "
                f"{tuple(map(int, clips.shape))}, whatever dynamic_axes says. For any shape, use dynamo=True.",
                stacklevel=2,
            )
        for norm in self._frozen_norms:
            norm.eval()
        shape = ClipShape(*clips.shape[:2], past, self._averaged())
        images = clips.flatten(0, 1)
        if not images.requires_grad and has_checkpoints(model):
            # Reentrant checkpointing drops all gradients of a function if none of its inputs requires one.
            images = images.detach().requires_grad_()
        args, kwargs = with_first_argument(images, self._arguments[0], args, kwargs)
        args, kwargs = self._fold_further(args, kwargs)
        labels, args, kwargs = take_labels(self._arguments, shape.clips, args, kwargs)
        _check_per_image(shape, {**dict(zip(self._arguments, args, strict=False)), **kwargs})
        self._labels.set(labels)
        self.frames.begin(shape)
        return args, kwargs

    def _leave(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if not torch.compiler.is_compiling():
            self.turns.end_call()
        shape, labels = self.frames.end(output), self._labels.get()
        self._labels.set(None)
        if shape is None or output is None:  # the call failed
            return None
        if shape.past is not None:
            return map_tensors(lambda t: by_frame(t, shape.clips, shape.frames), output)
        output = map_tensors(lambda t: per_clip(t, shape.clips, shape.frames, shape.averaged), output)
        if labels.labels is None:
            return output
        head = self.inspection.head and self.inspection.head.removeprefix(f"{self.inspection.tower}.")
        return add_loss(model, head, labels, output)

    def shape_of(self, args: tuple, kwargs: dict[str, Any]) -> tuple[int, int]:
        """Return the number of clips B and of frames T per clip that the arguments of a call contain.

        Raises:
            ValueError: If the first argument is not a batch of clips or images.
        """
        clips, _ = self._given(args, kwargs)
        self._check(clips)
        return clips.shape[0], clips.shape[1]

    def _given(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Past | None]:
        """Return the clips that a call is given, and what a stream remembers of the frames before."""
        clips, past = first_argument(self._arguments[0], args, kwargs), None
        if isinstance(clips, Continued):
            clips, past = clips
        if not isinstance(clips, Tensor):
            raise ValueError(
                f"The model got a {type(clips).__name__} instead of clips. Pass a tensor "
                f"(B, T, {', '.join(map(str, self.inspection.image))}) as the first argument, or as "
                f"{self._arguments[0]}=."
            )
        return clips.unsqueeze(1) if clips.ndim == len(self.inspection.image) + 1 else clips, past

    def _averaged(self) -> int | None:
        """Return over how many of the last frames outputs are averaged with the active adapter, None for all."""
        active = ((layer, layer.current) for layer in self.layers)
        return next((layer.adapters[name].averaged for layer, name in active if name is not None), None)

    def _fold_further(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Fold masks and grids of patches, ``(B, T, ...)``, as the patches are folded."""

        def fold(name: str, value: Any) -> Any:
            per_frame = isinstance(value, Tensor) and value.ndim == self.inspection.further.get(name, value.ndim) + 1
            return value.flatten(0, 1) if per_frame else value

        args = tuple(fold(name, value) for name, value in zip(self._arguments, args, strict=False))
        return args, {name: fold(name, value) for name, value in kwargs.items()}

    def _check(self, clips: Tensor) -> None:
        shape = tuple(clips.shape)
        if len(self.inspection.image) == 2:
            self._check_patches(shape)
        else:
            self._check_images(shape)
        if shape[1] == 0:
            raise ValueError(f"Got clips {shape}, which contain no frames. Pass clips of at least one frame.")
        if not clips.is_floating_point():
            raise ValueError(
                f"Got clips of {clips.dtype}. Pass floats, normalized like the backbone's images: "
                "(clips / 255 - mean) / std per channel, with mean and std from timm.data.resolve_model_data_config "
                "or transformers.AutoImageProcessor."
            )

    def _check_images(self, shape: tuple[int, ...]) -> None:
        channels = self.inspection.image[0]
        if len(shape) != 5:
            raise ValueError(
                f"Got a tensor {shape}, which is neither clips (B, T, {channels}, H, W) nor images "
                f"(B, {channels}, H, W). For a single clip (T, {channels}, H, W) pass clip.unsqueeze(0)."
            )
        if shape[2] != channels:
            if shape[1] == channels:
                raise ValueError(
                    f"Got clips {shape}, which look like (B, C, T, H, W), but frames have to come before channels. "
                    "Pass clips.transpose(1, 2)."
                )
            raise ValueError(
                f"Got clips {shape} with {shape[2]} channels where the model takes {channels}. Pass clips "
                f"(B, T, {channels}, H, W)."
            )

    def _check_patches(self, shape: tuple[int, ...]) -> None:
        width = self.inspection.image[-1]
        if len(shape) != 4 or shape[-1] != width:
            raise ValueError(
                f"Got a tensor {shape}, but this model takes clips as patches (B, T, N, {width}). Run its image "
                f"processor on each frame, and pass {', '.join(self.inspection.further)} with the leading axes (B, T) "
                "as well."
            )


def per_clip(tensor: Tensor, clips: int, frames: int, averaged: int | None = None) -> Tensor:
    """Convert an output for B*T images to one for B clips.

    Args:
        tensor: A tensor of the model's output.
        clips: Number of clips B.
        frames: Number of frames T per clip.
        averaged: Over how many of the last frames to average, None for all.

    Shape:
        ``(B*T,)`` and ``(B*T, D)`` are averaged, to ``(B,)`` and ``(B, D)``; ``(B*T, N, D) -> (B, T*N, D)``;
        ``(B*T, ...) -> (B, T, ...)``, also for integers, which have no average; a scalar stays as it is.

    Raises:
        ValueError: If the leading axis of the tensor is not the batch of images.

    Example:
        >>> per_clip(torch.tensor([[1.0], [3.0]]), clips=1, frames=2)
        tensor([[2.]])
    """
    if tensor.ndim == 0:
        return tensor
    tensor = by_frame(tensor, clips, frames)
    if tensor.ndim <= 3 and tensor.is_floating_point():
        return tensor.mean(1) if averaged is None else _mean_of_last(tensor, averaged)
    return tensor.flatten(1, 2) if tensor.ndim == 4 else tensor


def by_frame(tensor: Tensor, clips: int, frames: int) -> Tensor:
    """Split the leading axis of an output for B*T images by clip, ``(B*T, ...) -> (B, T, ...)``.

    Raises:
        ValueError: If the leading axis of the tensor is not the batch of images.
    """
    if tensor.ndim == 0:
        return tensor
    images = clips * frames
    # Each image may be split into windows, so that the leading axis is a multiple; or the sequence comes first.
    sequence_first = tensor.ndim == 3 and tensor.shape[0] != images and tensor.shape[1] == images
    if sequence_first or (tensor.shape[0] % images if images else tensor.shape[0]):
        raise ValueError(
            f"The model returned a tensor {tuple(tensor.shape)} for {images} images ({clips} clips of "
            f"{frames} frames). Its leading axis is not the batch, so it cannot be averaged over frames. Use a model "
            "whose outputs all start with the batch."
        )
    return tensor.unflatten(0, (clips, tensor.shape[0] // clips if clips else frames))


def _mean_of_last(tensor: Tensor, count: int) -> Tensor:
    """Return the mean over the last frames of clips, ``(B, T, ...) -> (B, ...)``."""
    frames = tensor.shape[1]
    if not isinstance(frames, torch.SymInt):
        return tensor[:, -count:].mean(1)
    is_last = torch.arange(frames, device=tensor.device) >= frames - count  # for export, of clips of any length
    return (tensor * is_last.view(-1, *[1] * (tensor.ndim - 2))).sum(1) / torch.sym_min(frames, count)


def _check_per_image(shape: ClipShape, given: dict[str, Any]) -> None:
    """Check that masks and the like have one entry per image, which the model expects, rather than one per clip."""
    for name, value in given.items():
        is_mask = isinstance(value, Tensor) and value.ndim > 1 and not value.is_floating_point()
        if is_mask and value.shape[0] == shape.clips and shape.frames > 1:
            raise ValueError(
                f"{name} has the shape {tuple(value.shape)}, with one entry per clip, but the model takes one per "
                f"image. Repeat each entry for the {shape.frames} frames of its clip: "
                f"{name}.repeat_interleave({shape.frames}, dim=0)."
            )


def has_checkpoints(model: nn.Module) -> bool:
    """Whether a call records gradients in a model that has gradient checkpointing switched on in some part."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    names = ("gradient_checkpointing", "grad_checkpointing")  # transformers, timm
    return any(getattr(module, name, False) is True for module in model.modules() for name in names)
