"""report(): every factorized layer of a model and the whole, measured beside the dense ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tdcompress.batches import evaluating
from tdcompress.decompositions.options import check_count
from tdcompress.errors import CompressionError
from tdcompress.layers import FactorizedConv
from tdcompress.report.measuring import Arguments, as_call, count_multiply_adds, layer_calls, median_milliseconds
from tdcompress.report.result import Cost, LayerReport, Report
from tdcompress.surgery import restore
from tdcompress.surgery.left import left_dense
from tdcompress.surgery.selection import other_holders
from tdcompress.watching import Call


def report(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    rounds: int = 20,
    errors: Mapping[str, Mapping[str, float]] | None = None,
) -> Report:
    """What a model with factorized layers costs, beside the same model with dense ones.

    Multiply-adds are counted by PyTorch's `FlopCounterMode`. Times are medians, dense and factorized in turn after a
    warm-up, in evaluation mode and on what every layer really gets from the example inputs, on as many threads as
    PyTorch has. Modes are restored and no hook is left behind.

    Args:
        model: any module, whether some of its layers are factorized or none.
        example_inputs: what to call the model with: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments. Without it there are neither multiply-adds nor times.
        rounds: how many times each is timed.
        errors: of the layers, as `approximation_errors` gives them, to stand beside what they cost.

    Returns:
        A table to be printed, with `to_pandas()` and `to_markdown()`.

    Raises:
        CompressionError: `rounds` is no number from 1; errors are of other layers; or with example inputs: a layer
            cannot be made dense for the comparison, see `restore`.

    >>> import tdcompress as td
    >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    >>> small = td.decompose(model, "2", method="cp", ratio=0.9)
    >>> print(report(small).to_markdown())
    | layer | method | rank | ratio asked | reached | error | solver | parameters |
    | --- | --- | --- | --- | --- | --- | --- | --- |
    | 2 | cp | 27 | 0.900 | 0.902 | 0... | ... sweeps | 36.9 K → 3.68 K |
    | the model | | | | | | | 38.7 K → 5.47 K |
    >>> report(small, torch.zeros(1, 3, 8, 8)).total.multiply_adds
    (652032, 155304)
    """
    check_count("rounds", rounds, least=1)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FactorizedConv)}
    given: Mapping[str, Mapping[str, float]] = errors or {name: {} for name in layers}
    if given.keys() != layers.keys():
        raise CompressionError(
            f"errors are of {', '.join(given)}; the model's factorized layers are {', '.join(layers)}."
        )
    parameters = {name: _parameters(layer) for name, layer in layers.items()}
    after = sum(parameter.numel() for parameter in model.parameters())
    # Layers with shared factors were one dense weight together.
    once = {
        frozenset(id(stage.weight) for stage in layer.weighted): before - now
        for layer, (before, now) in zip(layers.values(), parameters.values(), strict=True)
    }
    total = Cost((after + sum(once.values()), after))
    costs = {name: Cost(counts) for name, counts in parameters.items()}
    if example_inputs is not None:
        total, costs = _measured(model, layers, as_call(example_inputs), total, costs, rounds)
    entries = tuple(_entry(name, layer, costs[name], given[name]) for name, layer in layers.items())
    return Report(entries, total, tuple(left_dense(model).items()), tuple(other_holders(model)))


def _entry(name: str, layer: FactorizedConv, cost: Cost, errors: Mapping[str, float]) -> LayerReport:
    solution, verdict = layer.solution, ""
    if solution is not None:
        plural = "" if solution.sweeps == 1 else "s"
        reached = "converged" if solution.converged else "not converged"
        verdict = f"{reached}, {solution.sweeps} sweep{plural}" if solution.sweeps else "closed form"
    error = None if solution is None else solution.relative_error
    return LayerReport(
        name, layer.method, layer.rank, cost, layer.ratio_asked, layer.ratio, error, verdict, dict(errors)
    )


def _parameters(layer: FactorizedConv) -> tuple[int, int]:
    bias = 0 if layer.bias is None else layer.bias.numel()
    return layer.spec.numel + bias, sum(stage.weight.numel() for stage in layer.weighted) + bias


def _measured(
    model: nn.Module,
    layers: Mapping[str, FactorizedConv],
    arguments: Arguments,
    total: Cost,
    costs: Mapping[str, Cost],
    rounds: int,
) -> tuple[Cost, dict[str, Cost]]:
    """The costs with multiply-adds and times."""
    with torch.no_grad(), evaluating(model):
        dense = restore(model, hooks="keep") if layers else model
        calls = layer_calls(model, layers, arguments)
        return (
            _with_forwards(total, dense, model, [Call(*arguments)], rounds),
            {
                name: _with_forwards(costs[name], layer.to_conv(), layer, calls[name], rounds)
                for name, layer in layers.items()
            },
        )


def _with_forwards(cost: Cost, before: nn.Module, after: nn.Module, calls: Sequence[Call], rounds: int) -> Cost:
    def forward(module: nn.Module) -> Callable[[], None]:
        def run() -> None:
            for call in calls:
                call.on(module)

        return run

    runs = forward(before), forward(after)
    first, second = map(count_multiply_adds, runs)
    if not calls:
        return Cost(cost.parameters, (0, 0))
    return Cost(cost.parameters, (first, second), median_milliseconds(*runs, rounds=rounds))
