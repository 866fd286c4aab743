"""Original + approximation -> error."""

from tdcompress.batches import evaluating
from tdcompress.metrics import features, outputs, weights
from tdcompress.metrics.approximation import approximation_errors, weight_errors
from tdcompress.metrics.changes import ChangedOutputs
from tdcompress.metrics.means import RunningMean
from tdcompress.metrics.registry import METRICS, Metric, default_metrics, get_metrics, register_metric

__all__ = [
    "METRICS",
    "ChangedOutputs",
    "Metric",
    "RunningMean",
    "approximation_errors",
    "default_metrics",
    "evaluating",
    "features",
    "get_metrics",
    "outputs",
    "register_metric",
    "weight_errors",
    "weights",
]
