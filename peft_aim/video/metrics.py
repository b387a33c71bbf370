"""How well videos are classified: top-1, top-5, mean of the classes, each class, and what is taken for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

SHOWN = 12  # classes of which a whole confusion matrix can be read in a terminal


@dataclass(frozen=True)
class Metrics:
    """Results on labelled videos.

    Attributes:
        videos: Number of videos behind them.
        top1: Part of the videos whose class is the most probable one.
        interval: The 95 % confidence interval of top1 (Wilson's), as far as the number of videos goes.
        top5: Part of the videos whose class is among the five most probable; None if there are no more than five.
        mean_class: Mean of the parts that are right in each class that there are videos of.
        classes: Names of the classes.
        per_class: For each class the number of its videos, the part of them that is recognized (recall), and the part
            that is right of those that are taken for it (precision).
        confusion: Number of videos of each class (rows) that are taken for each class (columns).
    """

    videos: int
    top1: float
    interval: tuple[float, float]
    top5: float | None
    mean_class: float
    classes: list[str]
    per_class: list[dict[str, Any]]
    confusion: list[list[int]]

    @classmethod
    def of(cls, probabilities: np.ndarray, labels: np.ndarray, classes: list[str]) -> Metrics:
        """Compare predictions with labels.

        Args:
            probabilities: Of the classes, ``(videos, classes)``.
            labels: Indices of the true classes, ``(videos,)``.
            classes: Names of the classes.

        Example:
            >>> Metrics.of(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]), ["run", "walk"]).top1
            0.5
        """
        indices, guesses = range(len(classes)), probabilities.argmax(-1)
        right = int((guesses == labels).sum())
        many = len(classes) > 5
        precision, recall, _, support = precision_recall_fscore_support(
            labels, guesses, labels=indices, zero_division=0.0
        )
        per_class = [
            {"class": name, "videos": int(n), "recall": float(r), "precision": float(p)}
            for name, n, r, p in zip(classes, support, recall, precision, strict=True)
        ]
        return cls(
            videos=len(labels),
            top1=right / len(labels),
            interval=tuple(binomtest(right, len(labels)).proportion_ci(method="wilson")),
            top5=float(top_k_accuracy_score(labels, probabilities, k=5, labels=indices)) if many else None,
            mean_class=float(recall[support > 0].mean()),
            classes=classes,
            per_class=per_class,
            confusion=confusion_matrix(labels, guesses, labels=indices).tolist(),
        )

    @property
    def line(self) -> str:
        """What there is to say in a line."""
        least, greatest = self.interval
        top5 = "" if self.top5 is None else f"   top-5 {self.top5:.1%}"
        return (
            f"top-1 {self.top1:.1%} (95% interval {least:.1%} to {greatest:.1%}){top5}   "
            f"mean-class {self.mean_class:.1%}"
        )

    def table(self) -> str:
        """Lay out what there is to say of each class: all that is taken for what, or, of many, the worst."""
        matrix = np.array(self.confusion)
        if len(self.classes) <= SHOWN:
            return _matrix(self.classes, matrix)
        wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
        worst = np.argsort(wrong, axis=None)[::-1][:SHOWN]
        pairs = [np.unravel_index(place, wrong.shape) for place in worst if wrong.flat[place]]
        lines = [f"{wrong[i, j]:6}  {self.classes[i]} taken for {self.classes[j]}" for i, j in pairs]
        width = max(map(len, self.classes))
        each = [
            f"{row['class']:{width}}  {row['videos']:6}  {row['recall']:6.1%}  {row['precision']:9.1%}"
            for row in self.per_class
        ]
        head = f"{'class':{width}}  videos  recall  precision"
        return "\n".join([head, *each, "", "Most often confused (videos, class, prediction):", *lines])


def _matrix(classes: list[str], matrix: np.ndarray) -> str:
    width = max(map(len, classes))
    columns = [max(len(name), 4) for name in classes]
    head = "  ".join(name.rjust(column) for name, column in zip(classes, columns, strict=True))
    lines = [f"{'class / taken for':{max(width, 17)}}  {head}  recall"]
    for name, row in zip(classes, matrix, strict=True):
        cells = "  ".join(str(count).rjust(column) for count, column in zip(row, columns, strict=True))
        recall = f"{row[classes.index(name)] / row.sum():6.1%}" if row.sum() else "     -"
        lines.append(f"{name:{max(width, 17)}}  {cells}  {recall}")
    return "\n".join(lines)
