"""Classify videos while they last, at the cost of one frame per frame."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from peft_aim.backbone import listed, note_causal
from peft_aim.clips import Cell, Continued, Past
from peft_aim.config import AIMConfig
from peft_aim.saving import adapter_weights
from peft_aim.targets import adapted_blocks
from peft_aim.tracing import is_dropout, tensors_in, uncompiled


class Stream:
    """A video, or a batch of B videos, that a model with a causal adapter classifies while it lasts.

    Each frame is computed once. Of the frames before it, every block keeps keys and values of its temporal attention,
    in a ring of ``num_frames``, and what a convolution over time covers. With N tokens of width D per frame, the ring
    of a block has B * N * D * 2 * num_frames numbers; in float32, 8 frames take 116 MB in the 12 blocks of a ViT-B/16.
    Nothing grows with time.

    Call :meth:`reset` where something new begins. Frames after the first ``num_frames`` have the temporal embedding of
    the last of these, so that an adapter that was trained on clips of ``num_frames`` hardly tells their order
    (``benchmarks.early``).

    Several streams can share a model, also in threads, and together with ordinary calls of it. Call ``model.eval()``
    first. The model can be compiled: the first frames run uncompiled, and nothing is compiled again as time goes on.

    Args:
        model: A model with an active AIM adapter that has ``causal=True``; of a model of images and text, its image
            tower runs.
        approximate: Whether to run an adapter that was trained on whole clips as if it were causal. Its scores are
            not those of any clip (``benchmarks.early`` has the accuracy).

    Raises:
        ValueError: If the model has no active AIM adapter, if the adapter is not causal, or with ``approximate=True``
            cannot be run as if it were.

    Example:
        >>> import timm
        >>> from peft import get_peft_model
        >>> backbone = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> model = get_peft_model(backbone, AIMConfig(num_frames=4, causal=True, num_labels=3)).eval()
        >>> stream, video = Stream(model), torch.randn(1, 6, 3, 32, 32)
        >>> for frame in video.unbind(1):
        ...     scores = stream.push(frame)
        >>> torch.allclose(scores, model(video), atol=1e-5), len(stream)
        (True, 6)
    """

    def __init__(self, model: nn.Module, approximate: bool = False) -> None:
        self.model, self.approximate = model, approximate
        self.reset()

    def __len__(self) -> int:
        """Return the number of frames pushed since the stream began."""
        return self._count

    def reset(self) -> None:
        """Begin a new video, with the adapter that is active now."""
        self._adapter, self._config = self._active()
        if not self._config.causal:
            self._approximate()
        self._weights = list(adapter_weights(self._root, self._adapter).values())
        self._versions, self._settings = versions(self._weights), self._settings_now()
        self._past: Past | None = None
        self._shape: tuple[int, ...] = ()
        self._scores = torch.empty(0)  # of the last num_frames frames: that of frame t in row t % num_frames
        self._count, self._is_broken = 0, False

    @torch.inference_mode(False)  # what is remembered is written again later, perhaps outside of inference mode
    @torch.no_grad()
    def push(self, frames: Tensor) -> Tensor:
        """Add the next frames.

        Args:
            frames: The next frame ``(B, C, H, W)``, or several frames ``(B, T, C, H, W)``, as floats that are
                normalized for the backbone. Of a single video, B is 1: ``frame.unsqueeze(0)``.

        Returns:
            The class scores so far, ``(B, classes)``: the mean over the last ``num_frames`` frames. Features, if the
            model has no head.

        Raises:
            ValueError: If the frames have another shape than those before, or there are none; if another adapter is
                active, or its weights or their dtype have changed, since the stream began; if the model drops parts
                at random, in training mode; or if an earlier push failed midway.
        """
        self._check_adapter()
        frames = self._in_time(frames)
        shape = self._checked_shape(frames)
        past = self._past
        if past is None:
            past = Past(self._config.num_frames, torch.zeros((), dtype=torch.long, device=frames.device))
        try:
            scores = self._run(frames, past)
        except BaseException:  # also if it is interrupted
            self._is_broken = past.is_used
            raise
        self._past, self._shape = past, shape
        past.time += frames.shape[1]
        return self._average(scores)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the stream remembers, to continue it elsewhere. It is changed in place by the next push.

        Raises:
            ValueError: If an earlier push failed midway.
        """
        self._check_is_whole()
        if self._past is None:
            return {}
        cells = {f"{i}.{name}": tensor for i, cell in enumerate(self._past.cells) for name, tensor in cell.items()}
        shape = torch.tensor(self._shape)
        return {"time": self._past.time, "shape": shape, "scores": self._scores, **cells}

    @torch.inference_mode(False)
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue the stream that a :meth:`state_dict` is of, which has to have the same adapter.

        Raises:
            ValueError: If it is not a state of a stream, or of one with another ``num_frames``.
        """
        self.reset()
        if not state:
            return
        self._check_state(state)
        own = {name: tensor.to(self._weights[0].device, copy=True) for name, tensor in state.items()}
        time, shape, self._scores = own.pop("time"), own.pop("shape"), own.pop("scores")
        cells: dict[int, Cell] = defaultdict(dict)
        for name, tensor in own.items():
            number, _, part = name.partition(".")
            cells[int(number)][part] = tensor
        self._past = Past(self._config.num_frames, time, [cells[i] for i in range(len(cells))])
        self._count, self._shape = int(time), tuple(shape.tolist())

    def _run(self, frames: Tensor, past: Past) -> Tensor:
        """Return the scores of each frame, ``(B, T, classes)``."""
        past.begin()
        tower = self._root.aim_clips.inspection.tower
        model = self._root.get_submodule(tower) if tower else self.model
        with nullcontext() if past.cells else uncompiled:  # creates what is remembered; compiled code then finds it
            output = model(Continued(frames, past))
        found = (tensor for tensor in tensors_in(output) if tensor.ndim == 3 and tensor.is_floating_point())
        scores = next(found, None)
        if scores is None:
            raise ValueError(
                f"{type(self._root).__name__} returns neither class scores nor pooled features, one vector per frame. "
                "Give the adapter a head with num_labels, or use the model's variant for image classification."
            )
        return scores

    def _average(self, scores: Tensor) -> Tensor:
        """Return the mean of the scores of the last frames, after adding those of some frames."""
        width = self._config.num_frames
        if not self._count:
            self._scores = scores.new_zeros(width, scores.shape[0], scores.shape[2])
        for of_frame in scores.unbind(1):
            self._scores[self._count % width] = of_frame
            self._count += 1
        return self._scores[: self._count].mean(0)

    def _active(self) -> tuple[str, AIMConfig]:
        """Return the active adapter, by name, and its options."""
        self._root = adapted_root(self.model)  # unload() and get_peft_model() change it
        further = self._root.aim_clips.inspection.further
        if further:
            raise ValueError(
                f"{type(self._root).__name__} requires {', '.join(further)} as well, but streams have frames alone. "
                "Use a backbone that takes images (B, C, H, W), or call the model on clips."
            )
        active = {layer.current for layer in self._root.aim_clips.layers} - {None}
        if not active:
            raise ValueError(
                "No AIM adapter is active in this model. Activate one with model.set_adapter(name), outside of "
                "model.disable_adapter()."
            )
        (name,) = active
        return name, self._root.peft_config[name]

    def _approximate(self) -> None:
        """Prepare an adapter that is not causal to be run as if it were."""
        if not self.approximate:
            raise ValueError(
                f"The adapter {self._adapter!r} is not causal: it was trained on whole clips, in which frames attend "
                "to later ones, and these are not there yet in a stream. Train one with AIMConfig(causal=True), or "
                "peft-aim train --causal; or run it as if it were causal, with other scores, by "
                "Stream(model, approximate=True); or run it on a sliding window, peft-aim watch --window."
            )
        found = self._root.aim_clips.inspection
        adapted = {name: self._root.get_submodule(name) for name in adapted_blocks(self._root, self._adapter)}
        blocks = {name: layer for name, layer in adapted.items() if layer.has(self._adapter, "temporal")}
        reasons = note_causal(self._root, found, blocks)
        if reasons:
            raise ValueError(f"The adapter {self._adapter!r} cannot be run as if it were causal:{listed(reasons)}")
        for name, layer in blocks.items():
            if layer.adapters[self._adapter].temporal.anatomy is not found.modules[name]:  # not by an earlier stream
                layer.anatomy = found.modules[name]
                layer.configure(self._adapter, self._config)

    def _settings_now(self) -> list[object]:
        """Return the adapter's settings in each block; one of the same name that replaces it has other objects."""
        return [layer.adapters.get(self._adapter) for layer in self._root.aim_clips.layers]

    def _check_is_whole(self) -> None:
        if self._is_broken:
            raise ValueError("An earlier push failed midway, so what the stream remembers is wrong. Call reset().")

    def _check_state(self, state: dict[str, Tensor]) -> None:
        missing = {"time", "shape", "scores"} - {*state}
        if missing:
            raise ValueError(
                f"This is not what state_dict() of a stream returns: it has {', '.join(list(state)[:4])}, but not "
                f"{', '.join(sorted(missing))}. Pass the dictionary as it was returned."
            )
        if len(state["scores"]) != self._config.num_frames:
            raise ValueError(
                f"The state is that of a stream with num_frames={len(state['scores'])}, but the active adapter "
                f"{self._adapter!r} has num_frames={self._config.num_frames}. Activate the one that it is of."
            )

    def _check_adapter(self) -> None:
        self._check_is_whole()
        now = self._active()[0]
        is_same = all(map(operator.is_, self._settings_now(), self._settings))
        if now != self._adapter or not is_same or versions(self._weights) != self._versions:
            what = f"The active adapter is {now!r}" if now != self._adapter else f"The weights of {now!r} have changed"
            raise ValueError(
                f"{what}, but the stream began with {self._adapter!r}, and remembers what that made of its frames. "
                "Call reset() to begin a new one."
            )
        if self._root.training:
            self._check_nothing_drops()

    def _check_nothing_drops(self) -> None:
        """Check that nothing drops at random in training mode."""
        own = {name: getattr(self._config, name) for name in ("drop_path", "head_dropout")}
        dropping = [f"the adapter ({name}={rate})" for name, rate in own.items() if rate] + list(drops(self._root))
        if dropping:
            raise ValueError(
                f"The model is in training mode, in which {dropping[0]} drops at random. Call model.eval()."
            )

    def _in_time(self, frames: Tensor) -> Tensor:
        """Return frames with an axis of time, ``(B, T, C, H, W)``."""
        axes = len(self._root.aim_clips.inspection.image)
        if frames.ndim == axes:
            raise ValueError(
                f"Got a frame {tuple(frames.shape)} without the axis of the videos. Of a single one, pass "
                "frame.unsqueeze(0)."
            )
        return frames.unsqueeze(1) if frames.ndim == axes + 1 else frames

    def _checked_shape(self, frames: Tensor) -> tuple[int, ...]:
        """Return the number of videos and the shape of their frames, which has to be that of all frames."""
        shape = (frames.shape[0], *frames.shape[2:])
        if self._shape and shape != self._shape:
            raise ValueError(
                f"Got frames {tuple(frames.shape)}, but those before were {self._shape[0]} videos of frames "
                f"{self._shape[1:]}. Resize them, or call reset() to begin a new stream."
            )
        return shape


def drops(model: nn.Module) -> Iterator[str]:
    """Iterate over the modules that drop at random in training mode, with their rates.

    Example:
        >>> list(drops(nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.5))))
        ['1 (p=0.5)']
    """
    for name, module in model.named_modules():
        for option, value in vars(module).items():
            if isinstance(value, float) and value > 0 and (is_dropout(module) or "drop" in option):
                yield f"{name} ({option}={value})"


def adapted_root(model: nn.Module) -> nn.Module:
    """Return the backbone with AIM adapters inside of a model: a PeftModel, compiled or wrapped, or the backbone."""
    root = next((module for module in model.modules() if "aim_clips" in vars(module)), None)
    if root is None:
        raise ValueError(
            f"This {type(model).__name__} has no AIM adapters. Pass a model from get_peft_model(backbone, "
            "AIMConfig(causal=True)), or PeftModel.from_pretrained."
        )
    return root


def versions(weights: list[Tensor]) -> list[tuple[int, torch.dtype]]:
    """Return how often each weight has been changed in place, and its dtype."""
    return [(0 if weight.is_inference() else weight._version, weight.dtype) for weight in weights]
