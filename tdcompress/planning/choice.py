"""From the options of all layers to a plan: one allocation, and for latency a measurement of what it chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch

from tdcompress.batches import evaluating
from tdcompress.errors import CompressionError
from tdcompress.planning.allocation import allocate
from tdcompress.planning.costs import milliseconds_of, stand_in
from tdcompress.planning.layer import LayerPlan
from tdcompress.planning.options import DENSE, Option
from tdcompress.planning.problem import PlanningProblem
from tdcompress.planning.result import UNITS, Plan
from tdcompress.report.measuring import as_call, median_milliseconds
from tdcompress.surgery.left import left_lines
from tdcompress.surgery.swap import swapped

_ROUNDS = 15  # more than along the curves: what is chosen is measured once, and refused if it is slower than dense


def chosen(problem: PlanningProblem, options: Mapping[str, Sequence[Option]]) -> Plan:
    """The plan that loses least of those that keep to the budget.

    Args:
        problem: what the plan is about.
        options: of every layer, with costs and losses.

    Raises:
        CompressionError: there is none; it says what is the largest ratio that can be.
    """
    request = problem.request
    dense = sum(option.cost for option in chain(*options.values()) if option.method == DENSE)
    budget = request.share * dense
    places = allocate([[(option.cost, option.loss) for option in curve] for curve in options.values()], budget)
    if places is None:
        smallest = sum(min(option.cost for option in curve) for curve in options.values())
        left = "".join("\n" + line for line in left_lines(problem.left))
        raise CompressionError(
            f"ratio={1 - request.share:.6g} leaves {budget:.6g} of {dense:.6g} {UNITS[request.objective]}, but the "
            f"smallest possible is {smallest:.6g}; the largest ratio that can be reached is "
            f"{int(1e4 * (1 - smallest / dense)) / 1e4}.{left}"
        )
    entries = tuple(
        LayerPlan(name, problem.specs[name], tuple(curve), place, problem.tied[name])
        for (name, curve), place in zip(options.items(), places, strict=True)
    )
    method_options = tuple((name, options) for name, options in request.options.items() if options != type(options)())
    return Plan(
        entries,
        request.objective,
        request.metric_name,
        budget,
        request.seed,
        tuple(problem.left.items()),
        method_options,
        request.policy,
    )


def verified(problem: PlanningProblem, plan: Plan) -> Plan:
    """The plan with the times of what was chosen measured; what turns out slower than foreseen is chosen anew.

    Raises:
        CompressionError: the budget cannot be met with these times, or the whole model would not be faster.
    """
    options = {entry.layer: list(entry.options) for entry in plan.layers}
    measured: set[tuple[str, Option]] = set()
    while True:
        compressed = [entry for entry in plan.layers if entry.choice.method != DENSE]
        unsure = [entry for entry in compressed if (entry.layer, entry.choice) not in measured]
        if not unsure:
            _check_faster(problem, plan)
            return plan
        for entry in unsure:
            conv, calls = problem.convs[entry.layer], problem.calls[entry.layer]
            before, after = milliseconds_of(conv, entry.choice, calls, rounds=_ROUNDS)
            place = options[entry.layer].index(entry.choice)
            if after >= before:
                del options[entry.layer][place]
                continue
            cost = after / before * entry.dense.cost
            options[entry.layer][place] = replace(entry.choice, cost=cost)
            measured.add((entry.layer, options[entry.layer][place]))
        plan = chosen(problem, options)


def _check_faster(problem: PlanningProblem, plan: Plan) -> None:
    """Refuse a plan after which the whole model would not be faster, whatever its layers are."""
    model = problem.model
    swaps = [
        (entry.layer, model.get_submodule(entry.layer), stand_in(problem.convs[entry.layer], entry.choice))
        for entry in plan.layers
        if entry.choice.method != DENSE
    ]
    if not swaps:
        return
    args, kwargs = as_call(problem.example)
    with torch.no_grad(), evaluating(model):
        small = swapped(model, swaps, inplace=False)
        forwards = (lambda: model(*args, **kwargs)), (lambda: small(*args, **kwargs))
        before, after = median_milliseconds(*forwards, rounds=_ROUNDS)
    if after > before:
        raise CompressionError(
            f"the model would take {after:.3g} ms instead of {before:.3g}; ask for a higher ratio, or leave it dense."
        )
