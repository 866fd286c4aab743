"""The errors of a plan by its metric: read off the curves, or computed by decomposing at a few ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from tdcompress.fisher import fisher_factors
from tdcompress.layers import FactorizedConv
from tdcompress.layers.kinds import weight_of
from tdcompress.layers.request import Request
from tdcompress.methods import get_method
from tdcompress.metrics import get_metrics, weight_errors
from tdcompress.metrics.alternatives import alternative_errors
from tdcompress.metrics.approximation import foreseen_errors
from tdcompress.metrics.registry import Metric
from tdcompress.planning.options import Option, with_metric
from tdcompress.planning.problem import PREDICTED, PlanningProblem

# Curves have ‖W − Ŵ‖ / ‖W‖, the first of these. For inputs x with E xxᵀ = LLᵀ the features lose E‖(W − Ŵ)x‖², which is
# ‖WL − ŴL‖²: as the curve of the whitened kernel WL it is the second. With what the output makes of the features it is
# the third.
_READ_OFF = ("relative_weights", "relative_features", PREDICTED)


Measure = Callable[[PlanningProblem, str, Sequence[Option]], list[float]]  # the errors of some options of a layer


def with_errors(problem: PlanningProblem, curves: Mapping[str, list[Option]]) -> dict[str, list[Option]]:
    """The curves with errors by the metric that the request names."""
    metric = problem.request.metric
    if metric in _READ_OFF:
        return dict(curves)
    measure: Measure
    if isinstance(metric, str):
        (known,) = get_metrics(metric)
        measure = partial(_on_data if known.needs_data else _on_weights, known)
    else:
        measure = partial(_by_function, metric)
    return {name: with_metric(curve, partial(measure, problem, name)) for name, curve in curves.items()}


def _on_data(metric: Metric, problem: PlanningProblem, name: str, options: Sequence[Option]) -> list[float]:
    """In one pass over the data for all of them."""
    assert problem.inputs is not None
    logits = problem.request.logits
    layers = [_factorized(problem, name, option) for option in options]
    if metric.foreseen:
        factors = fisher_factors(problem.model, problem.inputs, name, logits=logits, progress=False)[name]
        return [foreseen_errors(problem.convs[name], one, factors, [metric])[metric.name] for one in layers]
    return alternative_errors(problem.model, name, layers, metric, problem.inputs, logits)


def _on_weights(metric: Metric, problem: PlanningProblem, name: str, options: Sequence[Option]) -> list[float]:
    layers = (_factorized(problem, name, option) for option in options)
    return [weight_errors(problem.convs[name], layer, [metric])[metric.name] for layer in layers]


def _by_function(
    metric: Callable[[Tensor, Tensor], Any], problem: PlanningProblem, name: str, options: Sequence[Option]
) -> list[float]:
    errors = []
    for option in options:
        weights = weight_of(problem.convs[name]), _factorized(problem, name, option).weight
        errors.append(float(metric(*(weight.detach().double() for weight in weights))))
    return errors


def _factorized(problem: PlanningProblem, name: str, option: Option) -> FactorizedConv:
    kind, options = get_method(option.method), problem.request.options[option.method]
    request = Request(options=options, rank=option.rank, axes=option.axes, seed=problem.request.seed)
    return kind.factorized(problem.convs[name], request)
