"""The metrics of a problem type."""

from __future__ import annotations

from peft_aim.video.metrics.multi_label import MultiLabelMetrics
from peft_aim.video.metrics.regression import RegressionMetrics
from peft_aim.video.metrics.single_label import Metrics
from peft_aim.video.problem_type import MULTI_LABEL, REGRESSION

AnyMetrics = Metrics | MultiLabelMetrics | RegressionMetrics


def metrics_of(problem_type: str | None) -> type[AnyMetrics]:
    """Return the class of metrics for a problem type; None is one class per video.

    Example:
        >>> metrics_of("regression").__name__
        'RegressionMetrics'
    """
    return {MULTI_LABEL: MultiLabelMetrics, REGRESSION: RegressionMetrics}.get(problem_type, Metrics)
