"""Class probabilities of what a source shows, one frame after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

import torch
from peft import PeftModel
from torch import Tensor

from peft_aim.streaming import Stream
from peft_aim.video.adapters import Loaded
from peft_aim.video.evaluate import score, scores_of
from peft_aim.video.finite import NotFinite, why_not_finite
from peft_aim.video.problem_type import values_of


class Scorer(ABC):
    """Class probabilities of the last frames.

    Attributes:
        frames: Number of frames that the last probabilities are of, T at most.
    """

    frames = 0

    @abstractmethod
    def push(self, frame: Tensor) -> Tensor | None:
        """Add a frame and return the class probabilities, None while there are too few frames.

        Shape:
            ``(3, H, W)``, normalized for the backbone -> ``(classes,)``

        Raises:
            NotFinite: If scores are NaN or infinite.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget all frames."""


class SlidingWindow(Scorer):
    """The last T frames as one clip, which is computed anew for each frame; for any adapter.

    Args:
        model: The model, in evaluation mode.
        frames: Number of frames T per clip.
        problem_type: What the scores mean, see :mod:`peft_aim.video.problem_type`.
    """

    def __init__(self, model: PeftModel, frames: int, problem_type: str | None = None) -> None:
        self._model, self._held, self._problem_type = model, deque(maxlen=frames), problem_type

    def push(self, frame: Tensor) -> Tensor | None:
        """Add a frame, see :meth:`Scorer.push`; there are no probabilities before the window is full."""
        self._held.append(frame)
        self.frames = len(self._held)
        if self.frames < self._held.maxlen:
            return None
        return score(self._model, torch.stack([*self._held])[None], 1, self._problem_type)[0].cpu()

    def reset(self) -> None:
        """Forget all frames."""
        self._held.clear()


class Causal(Scorer):
    """Each frame is computed once, by an adapter with ``causal=True``; there are probabilities from the first one on.

    Args:
        model: The model, in evaluation mode.
        frames: Number of frames T that the scores are averaged over.
        problem_type: What the scores mean, see :mod:`peft_aim.video.problem_type`.
    """

    def __init__(self, model: PeftModel, frames: int, problem_type: str | None = None) -> None:
        self._model, self._most, self._stream, self._problem_type = model, frames, Stream(model), problem_type

    def push(self, frame: Tensor) -> Tensor:
        """Add a frame, see :meth:`Scorer.push`."""
        scores = scores_of(self._stream.push(frame[None].to(next(self._model.parameters()).device)))
        self.frames = min(len(self._stream), self._most)
        if not scores.isfinite().all():
            raise NotFinite(why_not_finite(f"frame {len(self._stream)}", self._model))
        return values_of(scores[0].float(), self._problem_type).cpu()

    def reset(self) -> None:
        """Forget all frames."""
        self._stream.reset()


def scorer_of(loaded: Loaded, window: bool) -> Scorer:
    """Return how to score frames with an adapter.

    Args:
        loaded: The adapter.
        window: Whether to score a sliding window.

    Raises:
        ValueError: If the adapter is not causal and ``window`` is False.
    """
    frames, problem_type = loaded.descriptions[0].frames, loaded.descriptions[0].problem_type
    if window:
        return SlidingWindow(loaded.model, frames, problem_type)
    if not loaded.model.active_peft_config.causal:
        raise ValueError(
            f"The adapter {loaded.names[0]} is not causal: in its temporal attention, frames attend to later ones. "
            f"Give --window (window=True in Python) to score the last {frames} frames anew for each frame, or train "
            "an adapter that computes each frame once with peft-aim train --causal."
        )
    return Causal(loaded.model, frames, problem_type)
