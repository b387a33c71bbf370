"""Which frames and places a score rests on, and whether it depends on the order of frames: the result, in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from peft_aim.video.metrics import printable
from peft_aim.video.orders import FROZEN, IN_ORDER, REVERSED, SHUFFLED

SHOWN = 3  # frames that are named
MATTERS, HARDLY = 0.5, 0.9  # part of the probability that is left in another order


@dataclass(frozen=True)
class Explanation:
    """What a score of an adapter rests on in a clip of a video.

    Attributes:
        video: The video, as given.
        adapter: Folder or Hub id of the adapter.
        label: Name of the class, or of the number, that is explained.
        is_number: Whether the adapter predicts numbers rather than probabilities.
        seconds: Time of each of the T frames of the clip in seconds.
        attributions: What each cell of each frame adds to the score, negative if it speaks against it, ``(T, h, w)``.
            The cells divide the frames as the model sees them: resized and cropped.
        orders: Its probability, or the number, with the frames of the clip "in order", "shuffled" (mean of several
            shuffles), "reversed" and "frozen" to the middle frame; a single frame has only the first.
        damaged: What cannot be decoded, if it is more than a fifth of the frames; "" otherwise.
    """

    video: str | Path
    adapter: str
    label: str
    is_number: bool
    seconds: list[float]
    attributions: Tensor
    orders: dict[str, float]
    damaged: str = ""

    @property
    def value(self) -> float:
        """The probability of the class in the clip, or the number."""
        return self.orders[IN_ORDER]

    @property
    def shares(self) -> Tensor:
        """Share of each cell in all that speaks for the score, ``(T, h, w)``; all are 0 if nothing does."""
        speaks_for = self.attributions.clamp(min=0)
        return speaks_for / speaks_for.sum().clamp(min=1e-12)

    @property
    def frames(self) -> list[tuple[float, float]]:
        """Time in seconds and share of each frame, the greatest share first."""
        shares = self.shares.sum((1, 2)).tolist()
        return sorted(zip(self.seconds, shares, strict=True), key=lambda frame: -frame[1])

    @property
    def place(self) -> tuple[float, float]:
        """Center of the cell with the greatest share over all frames, from the left and top, as parts of a frame."""
        over_time = self.shares.sum(0)
        row, column = divmod(int(over_time.argmax()), over_time.shape[1])
        return (column + 0.5) / over_time.shape[1], (row + 0.5) / over_time.shape[0]

    @property
    def verdict(self) -> str:
        """Whether the score depends on the order of frames, in words."""
        if len(self.orders) == 1:
            return "The clip has a single frame, and so no order."
        found = ", ".join(f"{self.shown(value)} {_HOW[order]}" for order, value in self.orders.items())
        if self.is_number:
            return f"Order of frames: {found}"
        least = min(self.orders[SHUFFLED], self.orders[REVERSED])
        left = least / max(self.value, 1e-12)
        how = "matters" if left < MATTERS else "hardly matters" if left > HARDLY else "matters somewhat"
        return f"Order {how}: {found}"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in the types of JSON."""
        left, top = self.place
        return {
            "video": str(self.video),
            "adapter": self.adapter,
            "label": self.label,
            "value": self.value,
            "seconds": self.seconds,
            "shares": self.shares.sum((1, 2)).tolist(),
            "place": {"left": left, "top": top},
            "orders": self.orders,
            "attributions": self.attributions.tolist(),
            "damaged": self.damaged,
        }

    def __str__(self) -> str:
        clip = f"frames from {self.seconds[0]:.2f} to {self.seconds[-1]:.2f} s"
        return "\n".join(
            [
                f"{self.video}: {printable(self.label)} {self.shown(self.value)} ({clip})",
                *self._parts,
                self.verdict,
            ]
        )

    @property
    def _parts(self) -> list[str]:
        """Lines on the frames and the place with the greatest share."""
        if not self.shares.any():
            return ["No part of the clip speaks for it: scores are the same without any detail."]
        frames = ", ".join(f"{seconds:.2f} s ({share:.0%})" for seconds, share in self.frames[:SHOWN])
        left, top = self.place
        return [
            f"Frames with the greatest share: {frames}",
            f"Place with the greatest share: {left:.0%} from the left, {top:.0%} from the top",
        ]

    def shown(self, value: float) -> str:
        """Return a probability or number as text."""
        return f"{value:.4g}" if self.is_number else f"{value:.1%}"


_HOW = {IN_ORDER: "in order", SHUFFLED: "shuffled", REVERSED: "reversed", FROZEN: "with the middle frame alone"}
