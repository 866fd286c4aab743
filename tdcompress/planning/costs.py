"""What an option costs in multiply-adds or in time, on what its layer gets in a forward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdcompress.layers import ConvSpec
from tdcompress.layers.kinds import weight_of
from tdcompress.methods import get_method
from tdcompress.planning.options import DENSE, Option
from tdcompress.planning.problem import PlanningProblem
from tdcompress.report.measuring import count_multiply_adds, median_milliseconds
from tdcompress.shapes import Axes, Rank
from tdcompress.watching import Call

_TIMED = 4  # points of a curve that are timed
_ROUNDS = 7

Costing = Callable[[Sequence[Option]], list[Option]]


def costings(problem: PlanningProblem) -> dict[str, Costing]:
    """For every layer what gives its options their cost, in the unit of the plan's objective.

    Layers that are alike and see inputs that are alike share one: what is counted or timed for one holds for all.
    """
    convs, objective = problem.convs, problem.request.objective
    if objective == "parameters":
        return dict.fromkeys(convs, _parameters)
    costing = _multiply_adds if objective == "macs" else _latency
    alike = {name: _form(conv, problem.calls[name]) for name, conv in convs.items()}
    shared: dict[Hashable, Costing] = {}
    for name, form in alike.items():
        if form not in shared:
            shared[form] = costing(convs[name], problem.calls[name])
    return {name: shared[form] for name, form in alike.items()}


def _form(conv: Any, calls: Sequence[Call]) -> Hashable:
    """All that the cost of a layer depends on: its arguments, the form of its weight and of what it is called with."""
    seen: list[Hashable] = []

    def note(tensor: Tensor) -> Tensor:
        seen.append((tensor.shape, tensor.stride(), tensor.dtype, tensor.device))
        return tensor

    note(weight_of(conv))
    for call in calls:
        call.changed(note)
    return ConvSpec.of(conv), tuple(seen)


def _parameters(options: Sequence[Option]) -> list[Option]:
    return [replace(option, cost=float(option.parameters)) for option in options]


def milliseconds_of(conv: Any, option: Option, calls: Sequence[Call], rounds: int = _ROUNDS) -> tuple[float, float]:
    """Median times of the dense layer and of the option, in turn."""
    return median_milliseconds(_forward(conv, calls), _forward(stand_in(conv, option), calls), rounds=rounds)


def stand_in(conv: Any, option: Option) -> nn.Module:
    """A layer of the option's shape; its weights are zero, which is as fast as any others."""
    if option.method == DENSE:
        return copy.deepcopy(conv)
    kind = get_method(option.method)
    weight = weight_of(conv)
    layer = kind(ConvSpec.of(conv), option.rank, option.axes, device="meta").to_empty(device=weight.device)
    for parameter in layer.parameters():
        parameter.detach().zero_()
    return layer.to(weight.dtype).eval()


def _forward(layer: nn.Module, calls: Sequence[Call]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            for call in calls:
                call.on(layer)

    return run


def _multiply_adds(conv: Any, calls: Sequence[Call]) -> Costing:
    """Counted on the meta device, so that nothing is computed."""
    shapes = [call.changed(lambda tensor: tensor.to("meta")) for call in calls]
    spec, dtype = ConvSpec.of(conv), weight_of(conv).dtype

    @cache
    def counted(method: str, rank: Rank, axes: Axes) -> float:
        if method == DENSE:
            layer: nn.Module = spec.build(device="meta", dtype=dtype)
        else:
            layer = get_method(method)(spec, rank, axes, device="meta", dtype=dtype)
        return float(count_multiply_adds(_forward(layer, shapes)))

    return lambda options: [replace(one, cost=counted(one.method, one.rank, one.axes)) for one in options]


def _latency(conv: Any, calls: Sequence[Call]) -> Costing:
    """Timed at a few points of every method's curve and interpolated; what is not faster than dense is left out."""
    timed: dict[tuple[str, Axes], tuple[list[int], list[float]]] = {}  # parameters, and shares of the dense time
    dense_times: list[float] = []

    def time_curve(curve: Sequence[Option]) -> tuple[list[int], list[float]]:
        places = sorted({round(place) for place in np.linspace(0, len(curve) - 1, _TIMED)})
        pairs = [milliseconds_of(conv, curve[place], calls) for place in places]
        dense_times.extend(before for before, _ in pairs)
        # As a share of the dense time beside it: what slows the machine down slows both.
        return [curve[place].parameters for place in places], [after / before for before, after in pairs]

    def costed(options: Sequence[Option]) -> list[Option]:
        dense = next(option for option in options if option.method == DENSE)
        relative = []
        for key in dict.fromkeys((o.method, o.axes) for o in options if o.method != DENSE):
            curve = sorted((o for o in options if (o.method, o.axes) == key), key=lambda o: o.parameters)
            if key not in timed:
                timed[key] = time_curve(curve)
            relative += [replace(o, cost=float(np.interp(o.parameters, *timed[key]))) for o in curve]
        if not dense_times:
            dense_times.append(milliseconds_of(conv, dense, calls)[0])
        unit = float(np.median(dense_times))
        return [*(replace(o, cost=o.cost * unit) for o in relative if o.cost < 1), replace(dense, cost=unit)]

    return costed
