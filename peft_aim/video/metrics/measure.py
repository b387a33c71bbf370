"""The metric that decides which weights are best, by what labels are."""

from __future__ import annotations

from dataclasses import dataclass

from peft_aim.video.problem_type import MULTI_LABEL, REGRESSION, SINGLE_LABEL


@dataclass(frozen=True)
class Measure:
    """A metric.

    Attributes:
        key: Its key in reports and logs.
        name: Its name in texts and figures.
        is_fraction: Whether it is in [0, 1], and higher values are better; lower ones are otherwise.
    """

    key: str
    name: str
    is_fraction: bool = True

    def text(self, value: float) -> str:
        """Return a value in words.

        Example:
            >>> measure_of(None).text(0.5), measure_of("regression").text(0.5)
            ('top-1 50.0%', 'MAE 0.5')
        """
        return f"{self.name} {value:.1%}" if self.is_fraction else f"{self.name} {value:.4g}"

    @property
    def best(self) -> str:
        """The best value among others, in words."""
        return f"the {'highest' if self.is_fraction else 'lowest'} val {self.name}"


_MEASURES = {
    SINGLE_LABEL: Measure("top1", "top-1"),
    MULTI_LABEL: Measure("map", "mAP"),
    REGRESSION: Measure("mae", "MAE", is_fraction=False),
}


def measure_of(problem_type: str | None) -> Measure:
    """Return the metric that decides for a problem type; None is one class per video.

    Example:
        >>> measure_of("multi_label_classification").name
        'mAP'
    """
    return _MEASURES[problem_type or SINGLE_LABEL]
