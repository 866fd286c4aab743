"""Original + approximation -> error."""

from tdcompress.batches import evaluating
from tdcompress.metrics import features, weights
from tdcompress.metrics.approximation import approximation_errors, weight_errors
from tdcompress.metrics.features import FeatureMean
from tdcompress.metrics.registry import METRICS, Metric, get_metrics, register_metric

__all__ = [
    "METRICS",
    "FeatureMean",
    "Metric",
    "approximation_errors",
    "evaluating",
    "features",
    "get_metrics",
    "register_metric",
    "weight_errors",
    "weights",
]
