"""Original and compressed model -> the errors of every layer that was factorized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import batches, evaluating, repeatable
from tdcompress.errors import CompressionError
from tdcompress.fisher import fisher_factors
from tdcompress.layers import FactorizedConv
from tdcompress.layers.fisher import FisherFactors
from tdcompress.layers.kinds import weight_of
from tdcompress.metrics.changes import ChangedOutputs
from tdcompress.metrics.means import RunningMean
from tdcompress.metrics.registry import Metric, default_metrics, get_metrics
from tdcompress.outputs import Logits, Output
from tdcompress.surgery.holders import kind_at
from tdcompress.watching import Call, run, watching

Matched = Mapping[str, tuple[nn.Module, FactorizedConv]]


def approximation_errors(
    original: nn.Module,
    compressed: nn.Module,
    metrics: Sequence[str] | None = None,
    data: Iterable[Any] | Tensor | None = None,
    *,
    logits: Logits = None,
) -> dict[str, dict[str, float]]:
    """How far every factorized layer is from the convolution that it replaced.

    Feature errors are means over single samples, in evaluation mode, and the input of a layer is what it
    gets in the original model, so that an error is the layer's own. So is that of outputs: every other layer is the
    original's. One pass over the data serves all layers and all metrics on features, another those on outputs, and a
    third those that are foreseen; memory does not grow with the data. Both models are left as they were.

    Args:
        original: the model before.
        compressed: the model after, as `decompose` returns it.
        metrics: registered names; by default all that work on weights, and with `data` those on features. Those on
            outputs, `output_divergence` and `predicted_loss`, run the model for every layer, or backward, and are
            computed if they are named.
        data: batches of inputs for metrics on features and outputs: tensors (samples, …), or tuples or lists whose
            first entry is the input (targets are ignored), or dicts of keyword arguments. A single tensor is all
            samples, of which 64 at a time are looked at; where its first axis is another, put it into a list.
        logits: for metrics on outputs, what the output is: True for logits with the classes along the last axis, a
            number for another axis, False for values. By default an output that is called `logits`, as those of
            `transformers` are, and (samples, classes) with more than one class are logits; (samples,) and (samples, 1)
            are values; what has more axes is refused.

    Returns:
        `{layer name: {metric name: error}}`.

    Raises:
        CompressionError: nothing is factorized, the models do not belong together, a metric is unknown or
            needs data that was not given, the data is empty, or too often needed to be a generator; the output cannot
            be read, or a layer has no `predicted_loss`, see `fisher_factors`.

    >>> import tdcompress as td
    >>> model = nn.Sequential(nn.Conv2d(4, 8, 3))
    >>> small = td.decompose(model, "0", method="cp", ratio=0.5)
    >>> errors = approximation_errors(model, small, data=torch.randn(2, 4, 5, 5))
    >>> 0 < errors["0"]["relative_weights"] < 1 and 0 < errors["0"]["relative_features"] < 1
    True
    """
    matched = dict(pairs(original, compressed))
    chosen = get_metrics(default_metrics(data is not None) if metrics is None else metrics)
    on_features = [metric for metric in chosen if metric.on == "features"]
    measured = [metric for metric in chosen if metric.on == "outputs" and not metric.foreseen]
    foreseen = [metric for metric in chosen if metric.foreseen]
    passes = [some for some in (on_features, measured, foreseen) if some]
    errors = {name: weight_errors(*pair, chosen) for name, pair in matched.items()}
    if passes and data is None:
        names = ", ".join(metric.name for some in passes for metric in some)
        raise CompressionError(f"{names} need inputs to compare outputs on; pass data=, an iterable of batches.")
    if passes:
        assert data is not None
        inputs = repeatable(data) if len(passes) > 1 else batches(data)
        parts = [_feature_errors(original, matched, on_features, inputs)] if on_features else []
        parts += [_output_errors(original, matched, measured, inputs, logits)] if measured else []
        parts += [_foreseen_errors(original, matched, foreseen, inputs, logits)] if foreseen else []
        for name, part in chain.from_iterable(part.items() for part in parts):
            errors[name] |= part
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
    matched: Matched,
    metrics: Sequence[Metric],
    inputs: Iterable[Any],
) -> dict[str, dict[str, float]]:
    means: dict[str, RunningMean[Tensor]] = {name: RunningMean(metrics) for name in matched}

    def note(name: str, call: Call) -> None:
        approximation = matched[name][1]
        means[name].update(call.first_output, call.on(approximation))

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(original, *(layer for _, layer in matched.values())))
        stack.enter_context(watching({name: before for name, (before, _) in matched.items()}, note))
        for batch in inputs:
            run(original, batch)
    return _computed(means)


def _output_errors(
    original: nn.Module, matched: Matched, metrics: Sequence[Metric], inputs: Iterable[Any], logits: Logits
) -> dict[str, dict[str, float]]:
    """With each layer replaced alone, one batch at a time."""
    means: dict[str, RunningMean[Output]] = {name: RunningMean(metrics) for name in matched}
    changed = ChangedOutputs(original, matched, logits)
    for batch in inputs:
        changed.show([batch])
        for name in changed.order:
            changed.update(name, matched[name][1], means[name])
    return _computed(means)


def _foreseen_errors(
    original: nn.Module, matched: Matched, metrics: Sequence[Metric], inputs: Iterable[Any], logits: Logits
) -> dict[str, dict[str, float]]:
    factors = fisher_factors(original, inputs, list(matched), logits=logits)
    return {name: foreseen_errors(*pair, factors[name], metrics) for name, pair in matched.items()}


def foreseen_errors(
    original: nn.Module, approximation: nn.Module, factors: FisherFactors, metrics: Sequence[Metric]
) -> dict[str, float]:
    """The foreseen metrics among `metrics` of one layer."""
    with torch.no_grad():
        return {
            metric.name: float(metric.function(original, approximation, factors))
            for metric in metrics
            if metric.foreseen
        }


def _computed(means: Mapping[str, RunningMean[Any]]) -> dict[str, dict[str, float]]:
    unseen = [name for name, mean in means.items() if not mean.samples]
    if len(unseen) == len(means):
        raise CompressionError("the data is empty; errors of features and outputs need at least one batch of inputs.")
    if unseen:
        raise CompressionError(f"the model's forward never reached {', '.join(map(repr, unseen))}.")
    return {name: mean.compute() for name, mean in means.items()}
