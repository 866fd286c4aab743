"""Metrics of many batches: their running means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tdcompress.errors import CompressionError
from tdcompress.metrics.registry import Metric
from tdcompress.outputs import Output

Compared = TypeVar("Compared", Tensor, Output)


class RunningMean(Generic[Compared]):
    """The running mean of metrics over samples, or rows; its size does not depend on how many there are.

    >>> from tdcompress.metrics.registry import get_metrics
    >>> mean = RunningMean(get_metrics(["absolute_features"]))
    >>> mean.update(torch.ones(3, 4), torch.zeros(3, 4))
    >>> mean.compute()
    {'absolute_features': 2.0}
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = metrics
        self.samples = 0
        self._sums = [torch.zeros((), dtype=torch.float64) for _ in metrics]

    def update(self, original: Compared, approximation: Compared) -> None:
        """Take in one batch of a layer's outputs, (samples, …) each, or of what the model says.

        Raises:
            CompressionError: a metric does not return one number a sample.
        """
        for place, metric in enumerate(self.metrics):
            values = torch.as_tensor(metric.function(original, approximation))
            if values.shape != (len(original),):
                raise CompressionError(
                    f"metric {metric.name!r} must return one number a sample, shape {(len(original),)}, "
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
            raise CompressionError("no sample was seen; the data is empty.")
        return {
            metric.name: float(total) / self.samples for metric, total in zip(self.metrics, self._sums, strict=True)
        }
