"""plan(): curves, costs and sensitivities of all layers, and one allocation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tdcompress.batches import Data, again, evaluating, quickest
from tdcompress.errors import CompressionError, unknown
from tdcompress.layers import ConvSpec, FactorizedConv, InputMoments
from tdcompress.layers.kinds import cpu_sizes, reads_features, weight_of
from tdcompress.layers.moments import moment_bytes
from tdcompress.methods import get_method
from tdcompress.metrics import METRICS, approximation_errors, get_metrics, weight_errors
from tdcompress.moments import input_moments
from tdcompress.planning.allocation import allocate
from tdcompress.planning.costs import costings, milliseconds_of, stand_in
from tdcompress.planning.curves import LayerCurve, curve_of
from tdcompress.planning.layer import LayerPlan
from tdcompress.planning.options import DENSE, Option, with_metric
from tdcompress.planning.result import UNITS, Plan
from tdcompress.planning.trials import Trials, few_of, loss_of
from tdcompress.progress import Progress, following
from tdcompress.ranks import kept_share, parameter_budget
from tdcompress.report.measuring import as_call, layer_calls, median_milliseconds
from tdcompress.surgery import LayerSelector, decompose, select_layers
from tdcompress.surgery.left import OnRefusal, Refusals, without
from tdcompress.surgery.plain import Policy, check_wrapper, plain
from tdcompress.surgery.swap import swapped
from tdcompress.surgery.ties import cut_ties, follower, retie, tied_groups
from tdcompress.watching import watching
from tdcompress.work import solved

Objective = Literal["parameters", "macs", "latency"]
Metric = str | Callable[[Tensor, Tensor], Any]
DEFAULT_METHODS = ("cp", "tucker", "tt", "svd")
_READ_OFF = ("relative_weights", "relative_features")  # metrics that curves have, the second by whitening
_KEPT = 128 << 20  # bytes of moments that are kept for those who decompose next
_MOMENTS = 512 << 20  # bytes of moments at a time; more layers are planned in several passes


def plan(
    model: nn.Module,
    ratio: float = 0.75,
    *,
    methods: str | Sequence[str] = DEFAULT_METHODS,
    layers: LayerSelector | None = None,
    skip: LayerSelector | None = None,
    on_refusal: OnRefusal = "raise",
    objective: Objective = "parameters",
    metric: Metric = "relative_weights",
    example_inputs: Any = None,
    data: Data | None = None,
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
        methods: registered names, or one.
        layers: which layers, as for `decompose`; by default all that can be decomposed.
        skip: layers to leave as they are, as for `decompose`.
        on_refusal: what to do with a layer among `layers` that cannot be decomposed, or that no forward reaches:
            `"raise"`, or `"skip"` to leave it; `Plan.left` names it.
        objective: what the ratio is of: `"parameters"` of the weights; `"macs"`, multiply-adds; `"latency"`,
            milliseconds, measured on this machine, where a layer that would be slower than dense stays dense.
        metric: the error: `"relative_weights"`; `"relative_features"`, which needs data and is read off the curves of
            whitened kernels; another registered metric, or a function of a layer's weight and its approximation, for
            which layers are decomposed at a few ranks.
        example_inputs: what to call the model with, as for `report`; for multiply-adds and latency. Without it a first
            batch of the data is taken.
        data: batches of inputs without labels, as for `calibrate`. The output's change under two trial compressions of
            each layer then says how much its error matters; for these the first inputs do, up to 256, and of deep
            networks fewer.
        seed: what random starts are drawn from.
        executor: where curves are computed side by side, as for `decompose`.
        progress: as for `decompose`.

    Returns:
        The plan: a table to print, to edit, to keep as JSON, to draw and to apply.

    Raises:
        CompressionError: no such layers or methods, inputs are missing, or the budget cannot be met; the message says
            what is the largest ratio that can be.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
        >>> found = plan(model, 0.8, methods=("tucker", "svd"))
        >>> [entry.layer for entry in found.layers], found.cost[1] <= found.budget
        (['0', '2', '4'], True)
        >>> small = found.apply(model)
        >>> small(torch.zeros(1, 3, 9, 9)).shape
        torch.Size([1, 64, 3, 3])
    """
    found, _ = planned(
        model,
        ratio,
        methods,
        layers,
        skip,
        on_refusal,
        objective,
        metric,
        example_inputs,
        data,
        seed,
        executor,
        progress,
    )
    return found


def planned(
    model: nn.Module,
    ratio: float,
    methods: str | Sequence[str],
    layers: LayerSelector | None,
    skip: LayerSelector | None,
    on_refusal: OnRefusal,
    objective: Objective,
    metric: Metric,
    example_inputs: Any,
    data: Data | None,
    seed: int,
    executor: Executor | None,
    progress: Progress,
) -> tuple[Plan, dict[str, InputMoments]]:
    """What `plan` gives, and the moments of inputs that were summed for it, if they are small enough to be kept."""
    parameter_budget(1, ratio)  # for its check of the ratio
    if objective not in UNITS:
        raise unknown("objective", objective, UNITS)
    methods = (methods,) if isinstance(methods, str) else tuple(methods)
    for method in methods:
        get_method(method)
    inputs = None if data is None else again(data)
    whitened = _needs_moments(metric, inputs)
    example = _example(objective, example_inputs, inputs)
    refused = Refusals("skip" if layers is None else on_refusal)
    convs, tied, skipped = _convs(model, layers, skip, methods, refused)
    convs = _reached(model, convs, example, refused if layers is not None else None)
    share = float(kept_share(ratio))
    with following(progress, len(convs), "plan") as step:
        trials = None
        if inputs is not None:
            with evaluating(model):
                inputs = quickest(inputs, model)
                few = few_of(model, inputs, len(convs))
            trials = Trials(model, convs, few)
        seen = inputs if whitened else None
        curves, losses, moments = _curves(model, convs, tied, methods, seen, trials, share, seed, executor, step)
    curves = _measured(model, convs, curves, metric, inputs, seed)
    costs = costings(model, convs, objective, example)
    options = {
        name: [replace(one, loss=losses[name](one.error)) for one in costs[name](curve)]
        for name, curve in curves.items()
    }
    found = _allocated(convs, options, objective, metric, share, seed)
    if objective == "latency":
        found = _verified(model, found, convs, example, share)
    entries = tuple(replace(entry, tied=tied[entry.layer]) for entry in found.layers)
    left = {**skipped, **(refused.texts if layers is not None else {})}  # by default nobody asked for the refused
    return replace(found, layers=entries, left=tuple(left.items())), moments


def _needs_moments(metric: Metric, inputs: Iterable[Any] | None) -> bool:
    if metric in [name for name, known in METRICS.items() if known.on == "features"] and inputs is None:
        raise CompressionError(f"metric={metric!r} needs inputs; pass data=, an iterable of batches.")
    return metric == "relative_features"


def _example(objective: str, example_inputs: Any, inputs: Iterable[Any] | None) -> Any:
    if example_inputs is None and inputs is not None:
        batch = next(iter(inputs), None)
        example_inputs = batch if batch is None or isinstance(batch, Tensor | Mapping) else batch[0]
    if objective != "parameters" and example_inputs is None:
        raise CompressionError(f"objective={objective!r} needs example_inputs, what to call the model with.")
    return example_inputs


def _convs(
    model: nn.Module,
    layers: LayerSelector | None,
    skip: LayerSelector | None,
    methods: Sequence[str],
    refused: Refusals,
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]], dict[str, str]]:
    """The layers to plan, as plain ones, in the model's order; which share their weight; why others are left out."""
    selected = select_layers(model, (lambda name, module: True) if layers is None else layers, linear=True)
    selected, skipped = without(model, selected, skip)
    places = {name: place for place, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    selected.sort(key=lambda one: places[one[0]])
    found, tied = {}, {}
    for group in tied_groups(selected):
        (first, module), *others = group
        with refused.of(first):
            for name, _ in group:
                check_wrapper(model, name)
            for error in cut_ties(model, group).values():
                raise error
            conv = plain(module, Policy())
            if ConvSpec.of(conv).is_matrix and not any(get_method(method).takes_linear for method in methods):
                raise CompressionError(f"none of {', '.join(methods)} takes a {type(conv).__name__}.")
            found[first], tied[first] = conv, tuple(name for name, _ in others)
    refused.settle(len(selected))
    if not found:
        raise CompressionError("no layer of the model can be decomposed; td.refusals(model) says why.")
    return found, tied, skipped


def _reached(model: nn.Module, convs: Mapping[str, Any], example: Any, refused: Refusals | None) -> dict[str, Any]:
    """The layers that a forward on the example calls; of those that were named, all have to be."""
    if example is None:
        return dict(convs)
    met: set[str] = set()
    layers, (args, kwargs) = {name: model.get_submodule(name) for name in convs}, as_call(example)
    with torch.no_grad(), evaluating(model), watching(layers, lambda name, _: met.add(name), outputs=False):
        model(*args, **kwargs)
    unseen = [name for name in convs if name not in met]
    if unseen and (refused is not None or len(unseen) == len(convs)):
        error = CompressionError(f"the model's forward never reached {', '.join(map(repr, unseen))}.")
        if refused is None or refused.noted is None or len(unseen) == len(convs):
            raise error
        refused.noted.update({name: CompressionError("the forward never reaches it.") for name in unseen})
    return {name: conv for name, conv in convs.items() if name not in unseen}


def _curves(
    model: nn.Module,
    convs: Mapping[str, Any],
    tied: Mapping[str, Sequence[str]],
    methods: Sequence[str],
    inputs: Iterable[Any] | None,
    trials: Trials | None,
    share: float,
    seed: int,
    executor: Executor | None,
    step: Callable[[str], None],
) -> tuple[dict[str, list[Option]], dict[str, Callable[[float], float]], dict[str, InputMoments]]:
    """For every layer its options, and what an error counts: its square, or the change of the output that trials show.

    The third are the moments of the layers' inputs, if they are small enough to be kept.

    Args:
        model: the model.
        convs: its layers.
        tied: the layers that share the weight of one of them.
        methods: what they may become.
        inputs: to whiten by; None for the errors of the weights.
        trials: where layers are tried; None without data.
        share: of the cost that is kept.
        seed: of random starts.
        executor: where curves are computed.
        step: called with the name of every layer that is done.
    """
    curves: dict[str, list[Option]] = {}
    losses: dict[str, Callable[[float], float]] = {}
    order, tried_share = (list(convs), None) if trials is None else (trials.order, share)
    kept: dict[str, InputMoments] = {}
    keeps = sum(moment_bytes(ConvSpec.of(conv)) for conv in convs.values()) <= _KEPT
    for names in _passes(convs, order, inputs is not None):
        moments = input_moments(model, inputs, names, progress=False) if inputs is not None else {}
        if keeps:
            kept.update(moments)
        tasks = {
            name: LayerCurve(convs[name], tuple(methods), moments.pop(name, None), tried_share, seed) for name in names
        }
        sizes = cpu_sizes({name: convs[name] for name in names})
        found = solved(curve_of, tasks, step=step if trials is None else _not_yet, executor=executor, sizes=sizes)
        for name, (options, tried) in found.items():
            curves[name] = options
            seen = []
            if trials is not None:
                for error, layer in tried:
                    seen.append((error, trials.change(name, layer, _followers(model, tied[name], name, layer))))
                step(name)
            losses[name] = loss_of(seen) if seen else (lambda error: error**2)
    return {name: curves[name] for name in convs if name in curves}, losses, kept


def _not_yet(layer: str) -> None:
    """A layer is done when it was tried, too."""


def _followers(model: nn.Module, tied: Sequence[str], name: str, layer: FactorizedConv) -> dict[str, nn.Module]:
    """What stands in the places of the layers that share the weight of one that is tried."""
    found: dict[str, nn.Module] = {
        other: follower(name, layer, plain(model.get_submodule(other), Policy())) for other in tied
    }
    retie([(one, model.get_submodule(one), new) for one, new in {name: layer, **found}.items()])
    return found


def _passes(convs: Mapping[str, Any], order: Sequence[str], whitened: bool) -> Iterator[list[str]]:
    """The layers whose moments fit into memory together, and with them their curves."""
    names: list[str] = []
    size = 0
    for name in order:
        more = moment_bytes(ConvSpec.of(convs[name])) if whitened and reads_features(convs[name]) else 0
        if names and size + more > _MOMENTS:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    if names:
        yield names


def _measured(
    model: nn.Module,
    convs: Mapping[str, Any],
    curves: Mapping[str, list[Option]],
    metric: Metric,
    inputs: Iterable[Any] | None,
    seed: int,
) -> dict[str, list[Option]]:
    """The curves with errors by the metric, if they cannot be read off."""
    if metric in _READ_OFF:
        return dict(curves)
    known = None if callable(metric) else get_metrics([metric])

    def measure(name: str) -> Callable[[Option], float]:
        def of(option: Option) -> float:
            if known and known[0].on == "features":
                trial = decompose(
                    model, name, option.method, rank=option.rank, axes=option.axes, seed=seed, progress=False
                )
                assert inputs is not None
                return approximation_errors(model, trial, [known[0].name], inputs)[name][known[0].name]
            layer = get_method(option.method).from_conv(convs[name], rank=option.rank, axes=option.axes, seed=seed)
            if known:
                return weight_errors(convs[name], layer, known)[known[0].name]
            assert callable(metric)
            return float(metric(weight_of(convs[name]).detach().double(), layer.weight.detach().double()))

        return of

    return {name: with_metric(curve, measure(name)) for name, curve in curves.items()}


def _allocated(
    convs: Mapping[str, Any],
    options: Mapping[str, Sequence[Option]],
    objective: str,
    metric: Metric,
    share: float,
    seed: int,
) -> Plan:
    dense = sum(option.cost for option in chain(*options.values()) if option.method == DENSE)
    budget = share * dense
    chosen = allocate([[(option.cost, option.loss) for option in curve] for curve in options.values()], budget)
    if chosen is None:
        smallest = sum(min(option.cost for option in curve) for curve in options.values())
        raise CompressionError(
            f"ratio={1 - share:.6g} leaves {budget:.6g} of {dense:.6g} {UNITS[objective]}, but the smallest possible "
            f"is {smallest:.6g}; the largest ratio that can be reached is {int(1e4 * (1 - smallest / dense)) / 1e4}."
        )
    entries = tuple(
        LayerPlan(name, ConvSpec.of(convs[name]), tuple(curve), place)
        for (name, curve), place in zip(options.items(), chosen, strict=True)
    )
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "error")
    return Plan(entries, objective, name, budget, seed)


def _verified(model: nn.Module, found: Plan, convs: Mapping[str, Any], example: Any, share: float) -> Plan:
    """The plan with the times of what was chosen measured; what turns out slower than foreseen is chosen anew."""
    layers = {name: model.get_submodule(name) for name in convs}
    with torch.no_grad(), evaluating(model):
        calls = layer_calls(model, layers, as_call(example))
    options = {entry.layer: list(entry.options) for entry in found.layers}
    sure: set[tuple[str, Option]] = set()
    while True:
        unsure = [entry for entry in found.layers if entry.choice.method != DENSE]
        unsure = [entry for entry in unsure if (entry.layer, entry.choice) not in sure]
        if not unsure:
            _check_whole(model, found, convs, example)
            return found
        for entry in unsure:
            before, after = milliseconds_of(convs[entry.layer], entry.choice, calls[entry.layer], rounds=15)
            place = options[entry.layer].index(entry.choice)
            if after >= before:
                del options[entry.layer][place]
                continue
            cost = after / before * entry.dense.cost
            options[entry.layer][place] = replace(entry.choice, cost=cost)
            sure.add((entry.layer, options[entry.layer][place]))
        found = _allocated(convs, options, found.objective, found.metric, share, found.seed)


def _check_whole(model: nn.Module, found: Plan, convs: Mapping[str, Any], example: Any) -> None:
    """Refuse a plan after which the whole model would not be faster, whatever its layers are."""
    swaps = [
        (entry.layer, model.get_submodule(entry.layer), stand_in(convs[entry.layer], entry.choice))
        for entry in found.layers
        if entry.choice.method != DENSE
    ]
    if not swaps:
        return
    args, kwargs = as_call(example)
    with torch.no_grad(), evaluating(model):
        planned = swapped(model, swaps, inplace=False)
        before, after = median_milliseconds(lambda: model(*args, **kwargs), lambda: planned(*args, **kwargs), rounds=15)
    if after > before:
        raise CompressionError(
            f"the model would take {after:.3g} ms instead of {before:.3g}; ask for a higher ratio, or leave it dense."
        )
