"""Original and compressed model -> the errors of every layer that was factorized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import batches, evaluating
from tdcompress.errors import CompressionError
from tdcompress.layers import FactorizedConv
from tdcompress.layers.kinds import weight_of
from tdcompress.metrics.features import FeatureMean
from tdcompress.metrics.registry import METRICS, Metric, get_metrics
from tdcompress.surgery.holders import kind_at
from tdcompress.watching import Call, run, watching


def approximation_errors(
    original: nn.Module,
    compressed: nn.Module,
    metrics: Sequence[str] | None = None,
    data: Iterable[Any] | Tensor | None = None,
) -> dict[str, dict[str, float]]:
    """How far every factorized layer is from the convolution that it replaced.

    Feature errors are means over single samples, in evaluation mode, and the input of a layer is what it
    gets in the original model, so that an error is the layer's own. One pass over the data serves all layers
    and metrics; memory does not grow with the data. Both models are left as they were.

    Args:
        original: the model before.
        compressed: the model after, as `decompose` returns it.
        metrics: registered names; by default all that work on weights, and with `data` all there are.
        data: batches of inputs for feature metrics: tensors (samples, …), or tuples or lists whose first
            entry is the input (targets are ignored), or dicts of keyword arguments. A single tensor is one
            batch.

    Returns:
        `{layer name: {metric name: error}}`.

    Raises:
        CompressionError: nothing is factorized, the models do not belong together, a metric is unknown or
            needs data that was not given, or the data is empty.

    >>> import tdcompress as td
    >>> model = nn.Sequential(nn.Conv2d(4, 8, 3))
    >>> small = td.decompose(model, "0", method="cp", ratio=0.5)
    >>> errors = approximation_errors(model, small, data=torch.randn(2, 4, 5, 5))
    >>> 0 < errors["0"]["relative_weights"] < 1 and 0 < errors["0"]["relative_features"] < 1
    True
    """
    matched = dict(pairs(original, compressed))
    if metrics is None:
        metrics = [name for name, metric in METRICS.items() if data is not None or metric.on == "weights"]
    chosen = get_metrics([metrics] if isinstance(metrics, str) else metrics)
    on_features = [metric for metric in chosen if metric.on == "features"]
    if on_features and data is None:
        names = ", ".join(metric.name for metric in on_features)
        raise CompressionError(f"{names} need inputs to compare outputs on; pass data=, an iterable of batches.")
    errors = {name: weight_errors(*pair, chosen) for name, pair in matched.items()}
    if on_features:
        assert data is not None
        for name, errors_of_layer in _feature_errors(original, matched, on_features, batches(data)).items():
            errors[name] |= errors_of_layer
    return {name: {metric.name: by_metric[metric.name] for metric in chosen} for name, by_metric in errors.items()}


def weight_errors(original: Any, approximation: Any, metrics: Sequence[Metric]) -> dict[str, float]:
    """The weight metrics among `metrics` of one layer, computed in float64 from both layers' `weight`."""
    on_weights = [metric for metric in metrics if metric.on == "weights"]
    if not on_weights:
        return {}
    with torch.no_grad():
        before, after = weight_of(original).double(), weight_of(approximation).double()
        return {metric.name: float(metric.function(before, after)) for metric in on_weights}


def pairs(original: nn.Module, compressed: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, FactorizedConv]]]:
    """Every factorized layer by name, with the convolution at its place in the original.

    Raises:
        CompressionError: nothing is factorized, or the two models do not belong together.
    """
    before = dict(original.named_modules(remove_duplicate=False))
    factorized = [(name, layer) for name, layer in compressed.named_modules() if isinstance(layer, FactorizedConv)]
    if not factorized:
        raise CompressionError("no layer of the compressed model is factorized; decompose() it first.")
    for name, layer in factorized:
        weight = weight_of(before[name]) if name in before and kind_at(before[name]) is not None else None
        if weight is None or weight.shape != layer.weight.shape:
            seen = "nothing" if name not in before else f"a {type(before[name]).__name__}"
            seen += "" if weight is None else f" with a weight of {tuple(weight.shape)}"
            raise CompressionError(
                f"layer {name!r} stands for a kernel of {tuple(layer.weight.shape)}, but in the original there "
                f"is {seen}; are the two models of one kind?"
            )
        yield name, (before[name], layer)


def _feature_errors(
    original: nn.Module,
    matched: Mapping[str, tuple[nn.Module, FactorizedConv]],
    metrics: Sequence[Metric],
    inputs: Iterable[Any],
) -> dict[str, dict[str, float]]:
    means = {name: FeatureMean(metrics) for name in matched}

    def note(name: str, call: Call) -> None:
        approximation = matched[name][1]
        means[name].update(call.first_output, call.on(approximation))

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(original, *(layer for _, layer in matched.values())))
        stack.enter_context(watching({name: before for name, (before, _) in matched.items()}, note))
        for batch in inputs:
            run(original, batch)
    unseen = [name for name, mean in means.items() if not mean.samples]
    if len(unseen) == len(means):
        raise CompressionError("the data is empty; feature errors need at least one batch of inputs.")
    if unseen:
        raise CompressionError(f"the model's forward never reached {', '.join(map(repr, unseen))}.")
    return {name: mean.compute() for name, mean in means.items()}
