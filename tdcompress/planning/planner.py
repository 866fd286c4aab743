"""plan(): curves, costs and sensitivities of all layers, and one allocation."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from torch import nn

from tdcompress.batches import Data
from tdcompress.layers import InputMoments
from tdcompress.methods import Methods
from tdcompress.outputs import Logits
from tdcompress.planning.choice import chosen, verified
from tdcompress.planning.costs import costings
from tdcompress.planning.estimates import estimated
from tdcompress.planning.metric import with_errors
from tdcompress.planning.options import Option
from tdcompress.planning.problem import Metric, Objective, PlanRequest, problem_of
from tdcompress.planning.result import Plan
from tdcompress.progress import Progress, following
from tdcompress.surgery import LayerSelector
from tdcompress.surgery.left import OnRefusal
from tdcompress.surgery.plain import Hooks, Parametrized, Policy

_USED = 0.99  # of the budget, or curves get more points


def plan(
    model: nn.Module,
    ratio: float = 0.75,
    *,
    methods: Methods | None = None,
    layers: LayerSelector | None = None,
    skip: LayerSelector | None = None,
    on_refusal: OnRefusal = "raise",
    hooks: Hooks = "refuse",
    parametrized: Parametrized = "refuse",
    allow_subclasses: bool = False,
    objective: Objective = "parameters",
    metric: Metric = "relative_weights",
    example_inputs: Any = None,
    data: Data | None = None,
    trials: bool | None = None,
    logits: Logits = None,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Progress = None,
) -> Plan:
    """Choose a method and a rank for every layer of a model, so that together they keep to a budget and lose least.

    Every layer has a curve of error against cost for every method, and may be left dense. The sum of the squared
    errors, or with data of the changes of the output that they cause, is minimized under the budget, which is never
    exceeded. Nothing is decomposed for good: `Plan.apply` does that. Deterministic, but for `"latency"`. Beside the
    model, memory is that of its largest layers and of one batch of the data.

    Args:
        model: any module; it is left alone.
        ratio: the share of the cost of the planned layers to remove, in (0, 1).
        methods: registered names, or one, or a mapping of names to what their solvers are told, as `decompose` takes
            it; by default the methods that have `planned_by_default`.
        layers: which layers, as for `decompose`; by default all that can be decomposed. `Plan.left` names the others.
        skip: layers to leave as they are, as for `decompose`.
        on_refusal: what to do with a layer among `layers` that cannot be decomposed, or that no forward reaches:
            `"raise"`, or `"skip"` to leave it; `Plan.left` names it.
        hooks: what to do with layers that carry hooks, as for `decompose`.
        parametrized: what to do with layers whose weight is computed, as for `decompose`.
        allow_subclasses: whether subclasses of layers are treated as those layers, as for `decompose`.
        objective: what the ratio is of: `"parameters"` of the weights; `"macs"`, multiply-adds; `"latency"`,
            milliseconds, measured on this machine, where a layer that would be slower than dense stays dense.
        metric: the error: `"relative_weights"`; `"relative_features"`, which needs data and is read off the curves of
            whitened kernels; `"predicted_loss"`, which needs data too, is read off kernels that are whitened on both
            sides, and counts as it is, in nats, so that nothing has to be tried; another registered metric, or a
            function of a layer's weight and its approximation, for which layers are decomposed at a few ranks.
        example_inputs: what to call the model with, as for `report`; for multiply-adds and latency. Without it a first
            batch of the data is taken.
        data: batches of inputs without labels, as for `calibrate`. Unless the metric foresees it, the output's change
            under two trial compressions of each layer says how much its error by the metric matters; for these the
            first inputs do, up to 256, and of deep networks fewer.
        trials: whether layers are compressed in the model to see what their errors matter; by default with data, but
            not for the predicted loss, which says so itself.
        logits: for the predicted loss, what the output is, see `approximation_errors`.
        seed: what random starts are drawn from.
        executor: where curves are computed side by side, as for `decompose`.
        progress: as for `decompose`.

    Returns:
        The plan, a table to print, to edit, to keep as JSON, to draw and to apply.

    Raises:
        CompressionError: no such layers or methods, inputs are missing, or the budget cannot be met; the message says
            what is the largest ratio that can be.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
        >>> planned = plan(model, 0.8, methods=("tucker", "svd"))
        >>> [entry.layer for entry in planned.layers], planned.cost[1] <= planned.budget
        (['0', '2', '4'], True)
        >>> small = planned.apply(model)
        >>> small(torch.zeros(1, 3, 9, 9)).shape
        torch.Size([1, 64, 3, 3])
    """
    request = PlanRequest(
        ratio=ratio,
        methods=methods,
        layers=layers,
        skip=skip,
        on_refusal=on_refusal,
        policy=Policy(hooks, parametrized, allow_subclasses),
        objective=objective,
        metric=metric,
        example_inputs=example_inputs,
        data=data,
        trials=trials,
        logits=logits,
        seed=seed,
    )
    return planned(model, request, executor, progress)[0]


def planned(
    model: nn.Module, request: PlanRequest, executor: Executor | None, progress: Progress
) -> tuple[Plan, dict[str, InputMoments]]:
    """What `plan` gives, and the moments of inputs that were summed for it, if they are small enough to be kept."""
    problem = problem_of(model, request)
    with following(progress, len(problem.convs), "plan") as step:
        estimates = estimated(problem, executor, step)
    curves, costs = with_errors(problem, estimates.curves), costings(problem)
    losses = {name: estimates.loss(name, curve) for name, curve in curves.items()}

    def rated(name: str, some: Sequence[Option]) -> list[Option]:
        return [replace(option, loss=losses[name](option.error)) for option in costs[name](some)]

    options = {name: rated(name, curve) for name, curve in curves.items()}
    plan = chosen(problem, options)
    if request.objective == "latency":
        return verified(problem, plan), estimates.moments
    if plan.cost[1] < _USED * plan.budget:  # as where one layer has most of the weights, and its curve few points
        finer = {entry.layer: rated(entry.layer, entry.up_to_the_next()) for entry in plan.layers}
        plan = chosen(problem, {name: [*finer[name], *options[name]] for name in options})
    return plan, estimates.moments
