"""Errors of the features: how far a layer's output is from the original one's, on the same input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tdcompress.errors import CompressionError
from tdcompress.metrics.registry import Metric, register_metric
from tdcompress.metrics.weights import ratio


@register_metric("absolute_features", on="features")
def absolute_features(original: Tensor, approximation: Tensor) -> Tensor:
    """‖F − F̃‖ of every sample.

    >>> absolute_features(torch.ones(3, 4), torch.zeros(3, 4)).tolist()
    [2.0, 2.0, 2.0]
    """
    return torch.linalg.vector_norm((original - approximation).flatten(1), dim=1)


@register_metric("relative_features", on="features")
def relative_features(original: Tensor, approximation: Tensor) -> Tensor:
    """‖F − F̃‖ / ‖F‖ of every sample; 0 where a zero output is met exactly.

    >>> relative_features(torch.ones(3, 4), torch.zeros(3, 4)).tolist()
    [1.0, 1.0, 1.0]
    """
    size = torch.linalg.vector_norm(original.flatten(1), dim=1)
    return ratio(absolute_features(original, approximation), size)


@register_metric("scaled_features", on="features")
def scaled_features(original: Tensor, approximation: Tensor) -> Tensor:
    """‖F − F̃‖ / n of every sample, n the number of elements of its output.

    >>> scaled_features(torch.ones(3, 4), torch.zeros(3, 4)).tolist()
    [0.5, 0.5, 0.5]
    """
    return absolute_features(original, approximation) / original[0].numel()


class FeatureMean:
    """The running mean of feature metrics over samples; its size does not depend on how many there are.

    >>> from tdcompress.metrics.registry import get_metrics
    >>> mean = FeatureMean(get_metrics(["absolute_features"]))
    >>> mean.update(torch.ones(3, 4), torch.zeros(3, 4))
    >>> mean.compute()
    {'absolute_features': 2.0}
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = metrics
        self.samples = 0
        self._sums = [torch.zeros((), dtype=torch.float64) for _ in metrics]

    def update(self, original: Tensor, approximation: Tensor) -> None:
        """Take in one batch of outputs, (samples, …) each.

        Raises:
            CompressionError: a metric does not return one number a sample.
        """
        for place, metric in enumerate(self.metrics):
            values = torch.as_tensor(metric.function(original, approximation))
            if values.shape != original.shape[:1]:
                raise CompressionError(
                    f"metric {metric.name!r} must return one number a sample, shape {tuple(original.shape[:1])}, "
                    f"got {tuple(values.shape)}."
                )
            # Summed where it was computed: reading a number off a GPU here would stall every batch.
            self._sums[place] = self._sums[place].to(values.device) + values.double().sum()
        self.samples += len(original)

    def compute(self) -> dict[str, float]:
        """The means so far, by the metrics' names.

        Raises:
            CompressionError: no sample was seen.
        """
        if not self.samples:
            raise CompressionError("no sample was seen; feature errors need data that is not empty.")
        return {
            metric.name: float(total) / self.samples for metric, total in zip(self.metrics, self._sums, strict=True)
        }
