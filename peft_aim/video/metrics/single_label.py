"""Metrics for one class per video: accuracies, recall and precision by class, and the confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

from peft_aim.video.metrics.text import printable

SHOWN = 12  # largest number of classes whose confusion matrix fits a terminal


@dataclass(frozen=True)
class Metrics:
    """Results on labeled videos.

    Attributes:
        videos: Number of videos evaluated.
        top1: Top-1 accuracy, the fraction of the videos whose class is the most probable one.
        interval: 95% confidence interval of top1 (Wilson score interval); it accounts for the number of videos only.
        top5: Top-5 accuracy, the fraction of the videos whose class is among the five most probable; None for five
            classes or fewer.
        mean_class: Mean-class accuracy, the mean recall of the classes that have videos.
        classes: Class names.
        per_class: Number of videos, recall and precision of each class.
        confusion: Confusion matrix: number of videos of each true class (rows) and predicted class (columns).
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
        """Compute the metrics of predictions.

        Args:
            probabilities: Class probabilities, ``(videos, classes)``.
            labels: Indices of the true classes, ``(videos,)``.
            classes: Class names.

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
    def summary(self) -> dict[str, Any]:
        """The numbers that are saved with an adapter."""
        return {"top1": self.top1, "interval": self.interval, "top5": self.top5, "mean_class": self.mean_class}

    @property
    def logged(self) -> dict[str, float]:
        """The numbers that are logged while training."""
        return {"top1": self.top1, "mean_class": self.mean_class}

    @property
    def line(self) -> str:
        """The accuracies in one line."""
        least, greatest = self.interval
        top5 = "" if self.top5 is None else f"   top-5 {self.top5:.1%}"
        return f"top-1 {self.top1:.1%} (95% CI {least:.1%} to {greatest:.1%}){top5}   mean-class {self.mean_class:.1%}"

    def table(self) -> str:
        """Format the confusion matrix; for more than ``SHOWN`` classes, a table of classes and the top confusions."""
        matrix, names = np.array(self.confusion), [printable(name) for name in self.classes]
        if len(names) <= SHOWN:
            return _matrix(names, matrix)
        wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
        worst = np.argsort(wrong, axis=None)[::-1][:SHOWN]
        pairs = [np.unravel_index(index, wrong.shape) for index in worst if wrong.flat[index]]
        lines = [f"{wrong[i, j]:6}  {names[i]} predicted as {names[j]}" for i, j in pairs]
        width = max(map(len, names))
        each = [
            f"{name:{width}}  {row['videos']:6}  {row['recall']:6.1%}  {row['precision']:9.1%}"
            for name, row in zip(names, self.per_class, strict=True)
        ]
        head = f"{'class':{width}}  videos  recall  precision"
        return "\n".join([head, *each, "", "Most frequent confusions (videos, true class, predicted class):", *lines])


def _matrix(classes: list[str], matrix: np.ndarray) -> str:
    width = max(map(len, classes))
    columns = [max(len(name), 4) for name in classes]
    head = "  ".join(name.rjust(column) for name, column in zip(classes, columns, strict=True))
    lines = [f"{'true / predicted':{max(width, 16)}}  {head}  recall"]
    for index, (name, row) in enumerate(zip(classes, matrix, strict=True)):
        cells = "  ".join(str(count).rjust(column) for count, column in zip(row, columns, strict=True))
        recall = f"{row[index] / row.sum():6.1%}" if row.sum() else "     -"
        lines.append(f"{name:{max(width, 16)}}  {cells}  {recall}")
    return "\n".join(lines)
