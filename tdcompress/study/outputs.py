"""Metrics on outputs for the trials of a study: what they share is computed once in a process."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import batches, evaluating, first_of, first_samples, forward, pieces
from tdcompress.errors import CompressionError
from tdcompress.fisher import fisher_factors
from tdcompress.layers.fisher import FisherFactors
from tdcompress.metrics import ChangedOutputs, Metric, RunningMean
from tdcompress.metrics.approximation import foreseen_errors
from tdcompress.outputs import Logits, Output, read_output

_SAMPLES = 512  # the first of the data: what an output changes by is seen on few
_FEWEST = 16  # samples, however many predictions each of them has,
_ROWS = 8192  # and predictions, of tokens for example, above which no more samples are taken
_AT_A_TIME = 64


class OutputErrors:
    """The errors of outputs of one layer after the other, on the first inputs of the data.

    Args:
        model: the original model; left as it was.
        layers: the names of all layers that will be asked for.
        data: batches of inputs, or one tensor (samples, …) of all of them.
        metrics: those on outputs.
        logits: what the output is, see `approximation_errors`.

    Raises:
        CompressionError: the data is empty, the output cannot be read, or the model cannot be copied.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        data: Iterable[Any] | Tensor,
        metrics: Sequence[Metric],
        logits: Logits = None,
    ) -> None:
        self._model = model
        self._foreseen = [metric for metric in metrics if metric.foreseen]
        self._measured = [metric for metric in metrics if not metric.foreseen]
        with evaluating(model):
            few = _few(model, data, logits)
        self._factors: dict[str, FisherFactors] = {}
        if self._foreseen:
            self._factors = fisher_factors(model, few, list(layers), logits=logits, progress=False)
        if self._measured:
            self._changed = ChangedOutputs(model, layers, logits)
            self._changed.show(few)

    def errors(self, name: str, layer: nn.Module) -> dict[str, float]:
        """The metrics of a layer in place of the original one; quickest in the order of the forward."""
        by_metric: dict[str, float] = {}
        if self._foreseen:
            before = self._model.get_submodule(name)
            by_metric |= foreseen_errors(before, layer, self._factors[name], self._foreseen)
        if self._measured:
            mean: RunningMean[Output] = RunningMean(self._measured)
            self._changed.update(name, layer, mean)
            by_metric |= mean.compute()
        return by_metric


def _few(model: nn.Module, data: Iterable[Any] | Tensor, logits: Logits) -> list[Any]:
    """The first samples, a few at a time."""
    parts = (piece for batch in batches(data) for piece in pieces(batch, _AT_A_TIME))
    try:
        first = next(parts)
    except StopIteration:
        raise CompressionError("the data is empty; errors of outputs need at least one batch of inputs.") from None
    start, count = first_samples(first, 1)
    with torch.no_grad():
        rows = len(read_output(forward(model, start), logits)) / count
    return first_of(chain([first], parts), max(_FEWEST, min(_SAMPLES, math.ceil(_ROWS / rows))))
