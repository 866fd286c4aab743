"""What a layer may become: every method at many ranks, or dense, with what it costs and what it loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tdcompress.decompositions import Options
from tdcompress.layers import ConvSpec
from tdcompress.layers.kinds import weight_of
from tdcompress.layers.whitening import Whitening
from tdcompress.methods import get_method
from tdcompress.shapes import Axes, Rank

DENSE = "dense"
_BUDGETS = 32  # points of a curve
_SMALLEST = 0.004  # of the dense parameters: less of a layer is not worth keeping
_MEASURED = 4  # points of a curve at which a metric that cannot be read off is computed


@dataclass(frozen=True)
class Option:
    """One thing that a layer may become.

    Attributes:
        method: a registered name, or `"dense"` for the layer as it is.
        rank: the rank; empty for dense.
        axes: the arrangement of the spatial axes; empty for dense.
        parameters: of the weight.
        error: the metric, as far as planning foresees it.
        cost: in the unit of the plan's objective.
        loss: what the plan minimizes the sum of: the squared error, or with data the foreseen change of the output.
    """

    method: str
    rank: Rank
    axes: Axes
    parameters: int
    error: float
    cost: float = 0.0
    loss: float = 0.0


def options_of(conv: Any, methods: Mapping[str, Options], whitening: Whitening | None) -> list[Option]:
    """Every method's curve of relative error against parameters, and dense as the last.

    Args:
        conv: a plain layer of any kind.
        methods: registered names with the options of their solvers; those that do not take such a layer are left out.
        whitening: by its inputs, for the error of its features; None for that of its weight.
    """
    spec = ConvSpec.of(conv)
    size = spec.numel // spec.groups

    def budgets(least: int) -> list[int]:
        smallest = max(least, int(_SMALLEST * size))
        return [] if smallest >= size else sorted({int(n) for n in np.geomspace(smallest, size, _BUDGETS).round()})

    options: list[Option] = []
    weight = weight_of(conv).detach()
    for method, solver in methods.items():
        kind = get_method(method)
        if kind.takes(spec):
            for axes, rank, share in kind.points(spec, weight, whitening, budgets, solver):
                parameters = spec.groups * kind.parameters_at(kind.modes_of(spec, axes), rank)
                options.append(Option(method, rank, axes, parameters, math.sqrt(share)))
    smaller = [option for option in options if option.parameters < spec.numel]
    return [*smaller, Option(DENSE, (), (), spec.numel, 0.0)]


def with_metric(options: Sequence[Option], measure: Callable[[Sequence[Option]], Sequence[float]]) -> list[Option]:
    """The same options with another error, computed at a few points of every method's curve and interpolated.

    Args:
        options: with their relative errors.
        measure: the metric of some options, by decomposing; called once.
    """
    measured = [replace(option, error=0.0) for option in options if option.method == DENSE]
    curves: dict[tuple[str, Axes], list[Option]] = {}
    for option in sorted((one for one in options if one.method != DENSE), key=lambda one: (one.error, one.rank)):
        curves.setdefault((option.method, option.axes), []).append(option)
    tried = [
        [curve[place] for place in sorted({round(at) for at in np.linspace(0, len(curve) - 1, _MEASURED)})]
        for curve in curves.values()
    ]
    errors = iter(measure([option for some in tried for option in some]))
    for curve, some in zip(curves.values(), tried, strict=True):
        known = np.array([max(option.error, 1e-9) for option in some])
        values = np.array([max(next(errors), 1e-12) for _ in some])
        for option in curve:
            at = np.interp(math.log(max(option.error, 1e-9)), np.log(known), np.log(values))
            measured.append(replace(option, error=float(np.exp(at))))
    return measured
