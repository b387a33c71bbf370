"""Clips in, one result per clip out: hooks around an image model that fold frames into the batch and average them."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from peft_aim.backbone import Survey
from peft_aim.outputs import first_argument, map_tensors, with_first_argument
from peft_aim.per_thread import PerThread


@dataclass(eq=False)
class ClipCall:
    """One running call of the model.

    Attributes:
        clips: Number of clips B.
        frames: Number of frames T per clip.
        labels: Labels (B,) taken out of the call: the loss is computed on the averaged scores.
        loss_kwargs: Further arguments of the call that the model would hand to its loss function.
    """

    clips: int
    frames: int
    labels: Tensor | None = None
    loss_kwargs: dict[str, Any] = field(default_factory=dict)


class Clips:
    """Lets an image model take clips ``(B, T, C, H, W)``, and knows how long the clips are that tokens belong to.

    Images ``(B, C, H, W)`` are clips of one frame. The model sees ``(B*T, C, H, W)``; of what it returns, scores and
    pooled features ``(B*T, D)`` are averaged over frames, tokens ``(B*T, N, D)`` become ``(B, T*N, D)``, and tensors
    of more axes ``(B, T, ...)``.

    Args:
        survey: What the model is made of.
    """

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.call = PerThread()
        self._frames_of: dict[StorageWeakRef, int] = {}

    def attach(self, model: nn.Module) -> None:
        """Put the hooks around the part of a model that takes images.

        Bound methods, unlike closures, survive deepcopy and pickle.
        """
        tower = model.get_submodule(self.survey.tower)
        self._arguments = list(inspect.signature(tower.forward).parameters)
        self._frozen_norms = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
        self._trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._handles = [
            tower.register_forward_pre_hook(self._enter, with_kwargs=True),
            tower.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
        ]

    def detach(self, model: nn.Module) -> None:
        """Take the hooks off a model from which all adapters are gone, and let train again what did before."""
        for handle in self._handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._trainable)

    def frames(self, tokens: Tensor) -> int:
        """Return the number of frames T of the clips that a block's tokens ``(B*T, *N, D)`` belong to.

        While the model runs, that is the T of the thread's call. In backward, when gradient checkpointing runs a
        block again, the call is over and others may have come since; then T is what these very tokens had.

        Raises:
            ValueError: If the tokens don't lead with the batch of frames, or if no call of the model is running.
        """
        traced = self.call.traced
        return self._frames_now(tokens) if traced is None else _frames_in(traced, tokens)

    @torch.compiler.disable
    def _frames_now(self, tokens: Tensor) -> int:
        call = self.call.get()
        frames = self._frames_of.get(_storage(tokens)) if call is None else _frames_in(call, tokens)
        if frames is None:
            raise ValueError(
                f"A block with AIM adapters got tokens {tuple(tokens.shape)} outside of a call of the model, so "
                "nothing tells which frames belong together. Call the model itself on clips (B, T, C, H, W), not "
                "a part or a method of it."
            )
        self.remember(tokens, frames)
        return frames

    def remember(self, tokens: Tensor, frames: int) -> None:
        """Note T of some tokens, for as long as their memory lives."""
        if self.call.traced is None:
            self._remember_now(tokens, frames)

    @torch.compiler.disable
    def _remember_now(self, tokens: Tensor, frames: int) -> None:
        if not torch.is_inference_mode_enabled():
            self._frames_of[_storage(tokens)] = frames

    def _enter(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self.call.set(None)
        self._forget_the_dead()
        if getattr(model, "_is_replica", False):
            raise ValueError(
                "nn.DataParallel copies a model without its adapters' hooks. Use one process per device instead "
                "(accelerate launch, torchrun), or a single device (CUDA_VISIBLE_DEVICES=0)."
            )
        if kwargs.get("adapter_names") is not None:
            raise ValueError(mixed_batch_message(kwargs["adapter_names"]))
        clips = first_argument(self._arguments[0], args, kwargs)
        if not isinstance(clips, Tensor):
            raise ValueError(
                f"{type(model).__name__} got {type(clips).__name__} where clips belong. Pass a tensor "
                f"(B, T, {self.survey.channels}, H, W) first, or as {self._arguments[0]}=."
            )
        if clips.ndim == 4:
            clips = clips.unsqueeze(1)
        self._check(clips)
        for norm in self._frozen_norms:
            norm.eval()
        call = ClipCall(*clips.shape[:2])
        images = clips.flatten(0, 1)
        if images.is_floating_point() and not images.requires_grad and _checkpoints(model):
            # A reentrant checkpoint drops all gradients of a function none of whose inputs require one.
            images = images.detach().requires_grad_()
        args, kwargs = with_first_argument(images, self._arguments[0], args, kwargs)
        args, kwargs = self._take_labels(call, args, kwargs)
        _check_per_image(call, kwargs)
        self.call.set(call)
        return args, kwargs

    def _leave(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        call = self.call.get()
        self.call.set(None)
        if call is None or output is None:  # the call has failed
            return None
        output = map_tensors(lambda t: per_clip(t, call.clips, call.frames), output)
        return output if call.labels is None else self._with_loss(model, call, output)

    def _check(self, clips: Tensor) -> None:
        shape, channels = tuple(clips.shape), self.survey.channels
        if clips.ndim != 5:
            raise ValueError(
                f"Got a tensor {shape}, which is neither clips (B, T, {channels}, H, W) nor images "
                f"(B, {channels}, H, W). For a single clip (T, {channels}, H, W) pass clip.unsqueeze(0)."
            )
        if shape[2] != channels:
            if shape[1] == channels:
                raise ValueError(
                    f"Got clips {shape}, which look like (B, C, T, H, W). Frames come before channels here: pass "
                    "clips.transpose(1, 2)."
                )
            raise ValueError(
                f"Got clips {shape} with {shape[2]} channels where the model takes {channels}: clips are "
                f"(B, T, {channels}, H, W)."
            )
        if 0 in shape[:2]:
            raise ValueError(f"Got clips {shape}: there is no frame in them.")
        if not clips.is_floating_point():
            raise ValueError(
                f"Got clips of {clips.dtype}. Pass floats, normalized as the backbone's images were: clips / 255, "
                "less the mean, over the deviation of each channel (timm.data.resolve_model_data_config, or "
                "transformers.AutoImageProcessor, has them)."
            )

    def _take_labels(self, call: ClipCall, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Keep the labels from a model that would compare them with the scores of single frames."""
        names = self._arguments
        if "labels" not in names:
            return args, kwargs
        position = names.index("labels")
        if len(args) > position:
            call.labels = args[position]
            args = (*args[:position], None, *args[position + 1 :])
        else:
            call.labels = kwargs.get("labels")
            kwargs = {name: value for name, value in kwargs.items() if name != "labels"}
        if call.labels is not None and len(call.labels) != call.clips:
            raise ValueError(f"Got {len(call.labels)} labels for {call.clips} clips. Give one label per clip.")
        call.loss_kwargs = {name: value for name, value in kwargs.items() if name not in names}
        return args, kwargs

    def _with_loss(self, model: nn.Module, call: ClipCall, output: Any) -> Any:
        """Add the loss that the model's own function gives for the averaged scores."""
        scores = output[0] if isinstance(output, (tuple, list)) else output["logits"]
        if scores.ndim != 2:
            raise ValueError(
                f"labels= is for models that return class scores (B, classes); {type(model).__name__} returned "
                f"{tuple(scores.shape)}. Leave labels out and compute the loss from the output."
            )
        config = copy.copy(model.config)
        head = model.get_submodule(self.survey.head) if self.survey.head else model
        if getattr(head, "current", None) is not None:  # the adapter's own, with classes of its own
            config.num_labels, config.problem_type = scores.shape[-1], None
        loss = model.loss_function(call.labels, scores, config, **call.loss_kwargs)
        if isinstance(output, (tuple, list)):
            return type(output)((loss, *output))
        return type(output)(**{**output, "loss": loss})

    def _forget_the_dead(self) -> None:
        if not torch.compiler.is_compiling():
            for storage in list(self._frames_of):  # other threads may add meanwhile
                if storage.expired():
                    self._frames_of.pop(storage, None)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles know nothing of running calls."""
        return {**self.__dict__, "_frames_of": {}}


def per_clip(tensor: Tensor, clips: int, frames: int) -> Tensor:
    """Turn what a model returned for B*T images into what it is for B clips.

    Args:
        tensor: One of the model's outputs.
        clips: Number of clips B.
        frames: Number of frames T per clip.

    Shape:
        ``(B*T,)`` and ``(B*T, D)`` are averaged, to ``(B,)`` and ``(B, D)``; ``(B*T, N, D) -> (B, T*N, D)``;
        ``(B*T, ...) -> (B, T, ...)``, as are integers, of which there is no average; a scalar stays.

    Raises:
        ValueError: If the tensor does not lead with the batch of images.

    Example:
        >>> per_clip(torch.tensor([[1.0], [3.0]]), clips=1, frames=2)
        tensor([[2.]])
    """
    if tensor.ndim == 0:
        return tensor
    if tensor.shape[0] % (clips * frames):
        raise ValueError(
            f"The model returned a tensor {tuple(tensor.shape)} for {clips * frames} images ({clips} clips of "
            f"{frames} frames): its first axis is not the batch, so it cannot be averaged over frames."
        )
    tensor = tensor.unflatten(0, (clips, -1))
    if tensor.ndim <= 3 and tensor.is_floating_point():
        return tensor.mean(1)
    return tensor.flatten(1, 2) if tensor.ndim == 4 else tensor


def _check_per_image(call: ClipCall, kwargs: dict[str, Any]) -> None:
    """Refuse tensors, masks for example, that have one entry per clip: the model would read them as per image."""
    for name, value in kwargs.items():
        per_clip = isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == call.clips
        if per_clip and call.frames > 1 and name not in call.loss_kwargs:
            raise ValueError(
                f"{name} has the shape {tuple(value.shape)}, one entry per clip, but the model takes one per image. "
                f"Repeat it for the {call.frames} frames of a clip: {name}.repeat_interleave({call.frames}, dim=0)."
            )


def _frames_in(call: ClipCall, tokens: Tensor) -> int:
    if tokens.shape[0] != call.clips * call.frames:
        raise ValueError(
            f"A block got tokens {tuple(tokens.shape)} in a call on {call.clips} clips of {call.frames} frames: "
            f"its batch is not {call.clips * call.frames} images, so frames cannot be told from one another. "
            "Exclude this block with exclude_modules."
        )
    return call.frames


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def mixed_batch_message(adapter_names: list[str]) -> str:
    """Return why ``adapter_names`` is refused."""
    return (
        f"adapter_names={adapter_names!r}: AIM cannot run different adapters in one batch, since each may have its "
        "own number of frames and classes. Call model.set_adapter(name) and the model, once per adapter."
    )


def _checkpoints(model: nn.Module) -> bool:
    """Whether gradients are being recorded through a model, some part of which is to be recomputed."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    names = ("gradient_checkpointing", "grad_checkpointing")  # transformers, timm
    return any(getattr(module, name, False) is True for module in model.modules() for name in names)
