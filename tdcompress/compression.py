"""compress(): plan, apply and calibrate in one call."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, Literal

from torch import nn

from tdcompress.batches import Data, evaluating, quickest, repeatable
from tdcompress.calibration import DistillationOptions, Fit, distill
from tdcompress.calibration.calibrate import check_fit, fitted
from tdcompress.calibration.regression import has_closed_form
from tdcompress.errors import CompressionError
from tdcompress.gathering import input_moments
from tdcompress.methods import Methods, get_method
from tdcompress.outputs import Logits
from tdcompress.planning import DENSE, LayerPlan
from tdcompress.planning.planner import planned
from tdcompress.planning.problem import Metric, Objective, PlanRequest
from tdcompress.progress import Progress
from tdcompress.surgery import LayerSelector
from tdcompress.surgery.left import OnRefusal
from tdcompress.surgery.plain import Hooks, Parametrized, Policy


def compress(
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
    metric: Metric | None = None,
    example_inputs: Any = None,
    data: Data | None = None,
    trials: bool | None = None,
    logits: Logits = None,
    fit: Fit | Literal["outputs"] | DistillationOptions = "all",
    seed: int = 0,
    executor: Executor | None = None,
    progress: Progress = None,
) -> nn.Module:
    """Compress a whole model to a budget: plan, apply, and with data calibrate.

    With data the plan minimizes the change of the output, the decompositions are those of whitened kernels, and the
    result is fitted to the original's features, or to its outputs. No label is looked at, and without `fit="outputs"`
    nothing is trained.

    Args:
        model: any module; it is left alone.
        ratio: the share to remove, see `plan`, as for the arguments below.
        methods: registered names, or one, or a mapping of names to what their solvers are told.
        layers: which layers.
        skip: layers to leave as they are.
        on_refusal: what to do with layers that cannot be decomposed; `report` names those that were left.
        hooks: what to do with layers that carry hooks.
        parametrized: what to do with layers whose weight is computed.
        allow_subclasses: whether subclasses of layers are treated as those layers.
        objective: what the ratio is of.
        metric: the error; by default that of the weights, with data that of the features.
        example_inputs: for multiply-adds and latency.
        data: batches of inputs without labels; a thousand samples do.
        trials: whether layers are tried in the model.
        logits: what the output is.
        fit: what is fitted to the original's features, see `calibrate`; `"outputs"`, or `DistillationOptions` that say
            how, to go on to its outputs with all parameters, see `distill`.
        seed: what random starts are drawn from.
        executor: where curves and decompositions are computed side by side, as for `decompose`.
        progress: as for `decompose`; planning, decomposing and calibrating each have a bar.

    Returns:
        The compressed model.

    Raises:
        CompressionError: see `plan`, `calibrate` and `distill`; there are outputs to be fitted to, and no data.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
        >>> small = compress(model, 0.8, methods=("tucker",), data=[torch.randn(8, 3, 8, 8)])
        >>> sum(p.numel() for p in small.parameters()) < 0.3 * sum(p.numel() for p in model.parameters())
        True
    """
    local, distillation = _stages(fit)
    if distillation is not None and data is None:
        raise CompressionError('fit="outputs" needs data=, inputs without labels to ask the original about.')
    inputs = None if data is None else repeatable(data)
    metric = metric or ("relative_weights" if inputs is None else "relative_features")
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
        data=inputs,
        trials=trials,
        logits=logits,
        seed=seed,
    )
    plan, known = planned(model, request, executor, progress)
    chosen = [entry for entry in plan.layers if entry.choice.method != DENSE]
    if data is None or inputs is None or not chosen:
        return plan.apply(model, executor=executor, progress=progress)
    with evaluating(model):
        inputs = quickest(inputs, model)
    # Where calibration solves for all stages at once, what it starts from does not matter.
    names = [entry.layer for entry in chosen if not (local == "all" and _solved_anew(entry))]
    missing = [name for name in names if name not in known]
    whiten = {name: known[name] for name in names if name in known}
    if missing:
        whiten.update(input_moments(model, inputs, missing, progress=progress))
    small = plan.apply(model, whiten=whiten, executor=executor, progress=progress)
    if distillation is not None:
        found = distill(
            small, data, model, options=distillation, logits=logits, seed=seed, inplace=True, progress=progress
        )
        return found.model
    assert local is not None
    return fitted(small, inputs, model, local, progress=progress)


def _stages(fit: Fit | Literal["outputs"] | DistillationOptions) -> tuple[Fit | None, DistillationOptions | None]:
    """The local fit, and how to go on to the outputs, if so."""
    if fit == "outputs":
        fit = DistillationOptions()
    if isinstance(fit, DistillationOptions):
        return fit.local, fit
    check_fit(fit)
    return fit, None


def _solved_anew(entry: LayerPlan) -> bool:
    choice = entry.choice
    return has_closed_form(get_method(choice.method), entry.spec, choice.axes)
