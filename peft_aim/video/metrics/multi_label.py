"""Metrics for several classes per video: average precision of each class, and its mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from peft_aim.video.metrics.text import printable


@dataclass(frozen=True)
class MultiLabelMetrics:
    """Results on videos with several classes each.

    Attributes:
        videos: Number of videos evaluated.
        map: Mean average precision (mAP), over the classes that some video has.
        classes: Class names.
        per_class: Number of videos and average precision (AP) of each class; its AP is None if no video has the class.
    """

    videos: int
    map: float
    classes: list[str]
    per_class: list[dict[str, Any]]

    @classmethod
    def of(cls, probabilities: np.ndarray, targets: np.ndarray, classes: list[str]) -> MultiLabelMetrics:
        """Compute the metrics of predictions.

        Args:
            probabilities: Probability of each class, ``(videos, classes)``.
            targets: 1 for the classes of a video and 0 for others, ``(videos, classes)``.
            classes: Class names.

        Raises:
            ValueError: If no video has a class.

        Example:
            >>> MultiLabelMetrics.of(np.array([[0.9, 0.4], [0.1, 0.3]]), np.array([[1, 0], [0, 1]]), ["a", "b"]).map
            0.75
        """
        counts = targets.sum(0).astype(int)
        if not counts.any():
            raise ValueError(
                f"None of the {len(targets)} videos has any of the {len(classes)} classes, so there is no average "
                "precision. Evaluate videos that have some."
            )
        found = [
            float(average_precision_score(targets[:, i], probabilities[:, i])) if count else None
            for i, count in enumerate(counts)
        ]
        per_class = [
            {"class": name, "videos": int(count), "ap": ap}
            for name, count, ap in zip(classes, counts, found, strict=True)
        ]
        return cls(len(targets), float(np.mean([ap for ap in found if ap is not None])), classes, per_class)

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers that are saved with an adapter."""
        return {"map": self.map, "classes": sum(row["ap"] is not None for row in self.per_class)}

    @property
    def logged(self) -> dict[str, float]:
        """The numbers that are logged while training."""
        return {"map": self.map}

    @property
    def line(self) -> str:
        """The results in one line."""
        without = [printable(row["class"]) for row in self.per_class if row["ap"] is None]
        named = f"{', '.join(without[:5])}{' ...' * (len(without) > 5)}"
        left_out = f"; no video has {named}" if without else ""
        return f"mAP {self.map:.1%} (mean over {len(self.classes) - len(without)} classes{left_out})"

    def table(self) -> str:
        """Format the average precision of each class."""
        width = max(5, *(len(printable(name)) for name in self.classes))
        rows = [
            f"{printable(row['class']):{width}}  {row['videos']:6}  "
            + ("     -" if row["ap"] is None else f"{row['ap']:6.1%}")
            for row in self.per_class
        ]
        return "\n".join([f"{'class':{width}}  videos      AP", *rows])
