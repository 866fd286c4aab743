"""Several approximations of one layer, in one pass: what the original says is computed once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import evaluating
from tdcompress.layers import FactorizedConv
from tdcompress.metrics.changes import ChangedOutputs
from tdcompress.metrics.means import RunningMean
from tdcompress.metrics.registry import Metric
from tdcompress.outputs import Logits, Output
from tdcompress.watching import Call, run, watching


def alternative_errors(
    original: nn.Module,
    name: str,
    layers: Sequence[FactorizedConv],
    metric: Metric,
    inputs: Iterable[Any],
    logits: Logits = None,
) -> list[float]:
    """The error of every one of several layers in the same place, by a metric on features or on outputs.

    Args:
        original: the model; it is left as it was.
        name: of the place.
        layers: what could stand there.
        metric: not one that is foreseen.
        inputs: the batches.
        logits: for a metric on outputs, what the output is; see `approximation_errors`.

    Raises:
        CompressionError: the data is empty, the forward never reaches the place, or the output cannot be read.
    """
    if metric.on == "outputs":
        return _of_outputs(original, name, layers, metric, inputs, logits)
    means: list[RunningMean[Tensor]] = [RunningMean([metric]) for _ in layers]

    def note(name: str, call: Call) -> None:
        for layer, mean in zip(layers, means, strict=True):
            mean.update(call.first_output, call.on(layer))

    place = original.get_submodule(name)
    with torch.no_grad(), evaluating(original, *layers), watching({name: place}, note):
        for batch in inputs:
            run(original, batch)
    return [mean.compute()[metric.name] for mean in means]


def _of_outputs(
    original: nn.Module,
    name: str,
    layers: Sequence[FactorizedConv],
    metric: Metric,
    inputs: Iterable[Any],
    logits: Logits,
) -> list[float]:
    means: list[RunningMean[Output]] = [RunningMean([metric]) for _ in layers]
    changed = ChangedOutputs(original, [name], logits)
    for batch in inputs:
        changed.show([batch])
        for layer, mean in zip(layers, means, strict=True):
            changed.update(name, layer, mean)
    return [mean.compute()[metric.name] for mean in means]
