"""Metrics for numbers: mean absolute error and coefficient of determination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import mean_absolute_error, r2_score

from peft_aim.video.metrics.text import printable


@dataclass(frozen=True)
class RegressionMetrics:
    """Results on videos labeled with numbers.

    Attributes:
        videos: Number of videos evaluated.
        mae: Mean absolute error, in the units of the labels; of several numbers per video, the mean over them.
        r2: Coefficient of determination (R2): 1 is perfect, 0 as good as always predicting the mean of these videos;
            the mean over several numbers. None if all videos have the same number.
        classes: What the numbers are called.
        per_class: Mean absolute error and R2 of each number.
    """

    videos: int
    mae: float
    r2: float | None
    classes: list[str]
    per_class: list[dict[str, Any]]

    @classmethod
    def of(cls, values: np.ndarray, targets: np.ndarray, classes: list[str]) -> RegressionMetrics:
        """Compute the metrics of predictions.

        Args:
            values: Predicted numbers, ``(videos, numbers)``.
            targets: True numbers, ``(videos, numbers)``.
            classes: What the numbers are called.

        Example:
            >>> found = RegressionMetrics.of(np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]]), ["length"])
            >>> found.mae, found.r2
            (0.5, 0.5)
        """
        per_class = []
        for i, name in enumerate(classes):
            true, guess = targets[:, i], values[:, i]
            r2 = float(r2_score(true, guess)) if np.ptp(true) > 0 else None
            per_class.append({"class": name, "mae": float(mean_absolute_error(true, guess)), "r2": r2})
        known = [row["r2"] for row in per_class if row["r2"] is not None]
        mae = float(np.mean([row["mae"] for row in per_class]))
        return cls(len(targets), mae, float(np.mean(known)) if known else None, classes, per_class)

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers that are saved with an adapter."""
        return {"mae": self.mae, "r2": self.r2}

    @property
    def logged(self) -> dict[str, float]:
        """The numbers that are logged while training."""
        return {name: value for name, value in self.summary.items() if value is not None}

    @property
    def line(self) -> str:
        """The results in one line."""
        return f"MAE {self.mae:.4g}   R2 {_text(self.r2)}"

    def table(self) -> str:
        """Format the results by number."""
        width = max(6, *(len(printable(name)) for name in self.classes))
        rows = [
            f"{printable(row['class']):{width}}  {row['mae']:10.4g}  {_text(row['r2']):>6}" for row in self.per_class
        ]
        return "\n".join([f"{'number':{width}}  {'MAE':>10}  {'R2':>6}", *rows])


def _text(r2: float | None) -> str:
    return "-" if r2 is None else f"{r2:.3f}"
