"""Keeps track of the number of frames per clip, by call and by tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from peft_aim.clips.past import Part, Past
from peft_aim.clips.per_thread import PerThread
from peft_aim.tracing import tensors_in


@dataclass(frozen=True)
class ClipShape:
    """Shape of the clips of one call.

    Attributes:
        clips: Number of clips B.
        frames: Number of frames T per clip.
        past: What a stream remembers of the frames before, None outside of streams.
        averaged: Over how many of the last frames outputs are averaged, None for all.
    """

    clips: int
    frames: int
    past: Past | None = None
    averaged: int | None = None

    @property
    def images(self) -> int:
        """Number of images B*T."""
        return self.clips * self.frames

    def check(self, tokens: Tensor, groups: int) -> None:
        """Check that the leading axis of tokens ``(B*T*G, *N, D)`` is the batch of frames, of G patch groups each.

        Raises:
            ValueError: If it is not, for example in a block whose number of patch groups depends on the image size.
        """
        if tokens.shape[0] != self.images * groups:
            images = f"{self.images} images{f' of {groups} patch groups' if groups > 1 else ''}"
            raise ValueError(
                f"A block got tokens {tuple(tokens.shape)} in a call on {self.clips} clips of {self.frames} frames: "
                f"its batch is not {images}, so frames cannot be distinguished. Exclude this block with "
                "exclude_modules."
            )


class Span(NamedTuple):
    """The frames of the clips that tokens belong to.

    Attributes:
        frames: Their number T.
        past: What a stream remembers of the frames before, None outside of streams.
    """

    frames: int
    past: Part | None


class Frames:
    """Maps tokens to T, the number of frames of their clips.

    While the model runs, T is that of the current call in this thread. When gradient checkpointing runs a block again
    in backward, the call is over and others may have followed. T is then the value recorded for these tokens or, if a
    whole stage is run again, the common value of all calls that still await backward and fit the tokens.
    """

    def __init__(self) -> None:
        self._running = PerThread()
        self._of_storage: dict[StorageWeakRef, int] = {}
        self._awaited: WeakSet[_Waiting] = WeakSet()

    def begin(self, shape: ClipShape | None) -> None:
        """Record that this thread starts a call on clips of a shape; None if the shape is not known yet."""
        self._running.set(shape)
        if not torch.compiler.is_compiling():
            self._forget_the_dead()

    def end(self, output: Any = None) -> ClipShape | None:
        """Record that this thread's call is over; return its shape, None if the call failed before it was known."""
        shape = self._running.get()
        self._running.set(None)
        if shape is not None and not torch.compiler.is_compiling():
            self.await_backward(shape, output)
        return shape

    def await_backward(self, shape: ClipShape, output: Any) -> None:
        """Record that a call on clips of a shape awaits backward, for as long as the graph of its output lives."""
        waiting = _Waiting(shape)
        for node in (tensor.grad_fn for tensor in tensors_in(output) if tensor.grad_fn is not None):
            node.metadata[self] = waiting
            self._awaited.add(waiting)

    @property
    def call(self) -> ClipShape | None:
        """The call that this thread runs, another object for each; None in backward and outside of calls."""
        return self._running.get()

    def of(self, tokens: Tensor, groups: int = 1, remembers: bool = False) -> Span:
        """Return the frames of the clips that a block's tokens ``(B*T*G, *N, D)`` belong to.

        Args:
            tokens: The tokens.
            groups: Patch groups G per frame.
            remembers: Whether the block remembers frames in a stream. It is then asked for once in each call.

        Raises:
            ValueError: If the leading axis of the tokens is not the batch of frames, or if no call is running.
        """
        traced = self._running.traced
        if traced is None:
            return self._of_now(tokens, groups, remembers)
        traced.check(tokens, groups)
        return Span(traced.frames, _part(traced, remembers))

    def remember(self, tokens: Tensor, frames: int) -> None:
        """Record T for tokens, for as long as their memory lives."""
        if self._running.traced is None:
            self._remember_now(tokens, frames)

    @torch.compiler.disable
    def _of_now(self, tokens: Tensor, groups: int, remembers: bool) -> Span:
        shape = self._running.get()
        if shape is not None:
            shape.check(tokens, groups)
        frames = shape.frames if shape else self._of_storage.get(_storage_of(tokens))
        if frames is None:
            frames = self._of_waiting(tokens, groups)
        self.remember(tokens, frames)
        return Span(frames, shape and _part(shape, remembers))

    def _of_waiting(self, tokens: Tensor, groups: int) -> int:
        shapes = [waiting.shape for waiting in self._awaited] if in_backward() else []
        fitting = {shape.frames for shape in shapes if shape.images * groups == tokens.shape[0]}
        if len(fitting) > 1:
            raise ValueError(
                f"A stage of the model is run again in backward on tokens {tuple(tokens.shape)}, while calls on clips "
                f"of {sorted(fitting)} frames still await backward, so the number of frames per clip is ambiguous. "
                "Call backward() after each call, or switch gradient checkpointing off."
            )
        if not fitting:
            raise ValueError(
                f"A block with AIM adapters got tokens {tuple(tokens.shape)} outside of a call of the model, so the "
                "number of frames per clip is unknown. Call the model itself on clips (B, T, C, H, W), not a part or "
                "a method of it; its features are model.features(clips), with tokens=True those of all tokens."
            )
        return fitting.pop()

    @torch.compiler.disable
    def _remember_now(self, tokens: Tensor, frames: int) -> None:
        storage = _storage_of(tokens)
        if storage is not None and not torch.is_inference_mode_enabled():
            self._of_storage[storage] = frames

    def _forget_the_dead(self) -> None:
        for storage in list(self._of_storage):  # other threads may add meanwhile
            if storage.expired():
                self._of_storage.pop(storage, None)

    def __reduce__(self) -> tuple:
        """Create copies and pickles empty, without running calls."""
        return Frames, ()


@dataclass(eq=False)
class _Waiting:
    """A call that still awaits backward."""

    shape: ClipShape


def _part(shape: ClipShape, remembers: bool) -> Part | None:
    if shape.past is None:
        return None
    return shape.past.part() if remembers else shape.past.without_cell()


def _storage_of(tokens: Tensor) -> StorageWeakRef | None:
    """Return the memory of tokens, None for those of torch.func, which have none (nor checkpointing)."""
    try:
        return StorageWeakRef(tokens.untyped_storage())
    except (NotImplementedError, RuntimeError):
        return None


def in_backward() -> bool:
    """Whether this thread is running a backward pass."""
    return torch._C._current_graph_task_id() != -1
