"""Metrics by what labels are: one class, several classes, or numbers."""

from peft_aim.video.metrics.measure import Measure, measure_of
from peft_aim.video.metrics.multi_label import MultiLabelMetrics
from peft_aim.video.metrics.of import AnyMetrics, metrics_of
from peft_aim.video.metrics.regression import RegressionMetrics
from peft_aim.video.metrics.single_label import Metrics
from peft_aim.video.metrics.text import printable

__all__ = [
    "AnyMetrics",
    "Measure",
    "Metrics",
    "MultiLabelMetrics",
    "RegressionMetrics",
    "measure_of",
    "metrics_of",
    "printable",
]
