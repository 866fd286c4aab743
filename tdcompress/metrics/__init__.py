"""Original + approximation -> error."""

from tdcompress.metrics import features, weights
from tdcompress.metrics.approximation import approximation_errors, evaluating, forward_batch, weight_errors
from tdcompress.metrics.features import FeatureMean
from tdcompress.metrics.registry import METRICS, Metric, get_metrics, register_metric

__all__ = [
    "METRICS",
    "FeatureMean",
    "Metric",
    "approximation_errors",
    "evaluating",
    "features",
    "forward_batch",
    "get_metrics",
    "register_metric",
    "weight_errors",
    "weights",
]
