"""The curves of all layers, and what their errors count for: in passes that fit into memory, with trials between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from torch import nn

from tdcompress.batches import evaluating, first_of, samples_in
from tdcompress.fisher import fisher_factors
from tdcompress.gathering import input_moments
from tdcompress.layers import FactorizedConv, FisherFactors, InputMoments
from tdcompress.layers.fisher import factor_bytes
from tdcompress.layers.kinds import cpu_sizes, reads_features
from tdcompress.layers.moments import moment_bytes
from tdcompress.planning.curves import LayerCurve, curve_of
from tdcompress.planning.options import Option
from tdcompress.planning.problem import PREDICTED, PlanningProblem
from tdcompress.planning.trials import Trials, few_of, loss_of
from tdcompress.shapes import Axes, Rank
from tdcompress.surgery.plain import plain
from tdcompress.surgery.ties import follower, retie
from tdcompress.work import in_order, one_by_one

# The moments of a layer's inputs have about channels² / groups numbers, see `moment_bytes`. Bytes of all layers'
# together up to which they are kept, because whoever decomposes next needs the same; more are cheaper summed anew.
_KEPT = 128 << 20
# Bytes of the layers of one pass: each further pass runs the model over the data once more.
_MOMENTS = 512 << 20
_DRAWS = 1  # of signs, for every prediction of
_SAMPLES = 256  # inputs, the first of the data: as many as trials take

Moments = InputMoments | FisherFactors


@dataclass(frozen=True)
class Estimates:
    """What is known of the layers before anything is chosen.

    Attributes:
        curves: the options of every layer, in the order of the problem's layers.
        changes: those options of every layer that were tried, and how much the output changes with each; none without
            trials.
        moments: of the layers' inputs, if all of them are small enough to be kept.
        squared: whether errors are squares already, as the predicted loss is.
    """

    curves: dict[str, list[Option]]
    changes: dict[str, list[tuple[Option, float]]]
    moments: dict[str, InputMoments]
    squared: bool

    def loss(self, name: str, curve: Sequence[Option]) -> Callable[[float], float]:
        """What an error of a layer counts: its square, or the change of the output that trials have shown.

        The predicted loss counts as it is, and trials show it as the square of an error.

        Args:
            name: of the layer.
            curve: its options with errors by the metric that the plan is made by. What was tried is looked up there:
                a change belongs to an error by this metric, of which the first error need not be a multiple.
        """
        error_of = {_identity(option): option.error for option in curve}
        trials = [(error_of[_identity(option)], change) for option, change in self.changes[name]]
        if not self.squared:
            return loss_of(trials) if trials else _squared
        if not trials:
            return _as_it_is
        shown = loss_of([(math.sqrt(error), change) for error, change in trials])
        return lambda error: shown(math.sqrt(error))


def estimated(problem: PlanningProblem, executor: Executor | None, step: Callable[[str], None]) -> Estimates:
    """The curves of all layers; with trials every layer is tried at two of its options.

    Args:
        problem: what the plan is about.
        executor: where curves are computed.
        step: called with the name of every layer that is done.
    """
    trials = _trials(problem)
    curves: dict[str, list[Option]] = {}
    changes: dict[str, list[tuple[Option, float]]] = {}
    kept: dict[str, InputMoments] = {}
    shown = _shown(problem)
    keeps = sum(map(moment_bytes, problem.specs.values())) <= _KEPT and _are_all(shown, problem)
    for names in _passes(problem, list(problem.convs) if trials is None else trials.order):
        moments = _moments(problem, shown, names)
        if keeps:
            kept.update(_of_inputs(moments))
        results = one_by_one(
            curve_of,
            {name: _task(problem, name, moments, trials is not None) for name in names},
            executor=executor,
            sizes=cpu_sizes({name: problem.convs[name] for name in names}),
        )
        del moments  # every layer's are those of its task alone
        with closing(results):  # layers that are tried, as large as the model's, are gone before the next is solved
            for name, (options, tried) in in_order(results, names):
                curves[name] = options
                changes[name] = [] if trials is None else _changes(problem, trials, name, tried)
                del tried
                step(name)
    by_layer = {name: curves[name] for name in problem.convs if name in curves}
    return Estimates(by_layer, changes, kept, squared=problem.request.metric == PREDICTED)


def _shown(problem: PlanningProblem) -> Iterable[Any] | None:
    """What moments are of: all of the data, or for the predicted loss the first inputs, the same in every pass."""
    if problem.inputs is None or problem.request.metric != PREDICTED:
        return problem.inputs
    return first_of(problem.inputs, _SAMPLES)


def _are_all(shown: Iterable[Any] | None, problem: PlanningProblem) -> bool:
    """Whether that is all of the data: moments of the first inputs would not do for whoever decomposes."""
    return shown is None or shown is problem.inputs or sum(map(samples_in, shown)) < _SAMPLES


def _moments(problem: PlanningProblem, inputs: Iterable[Any] | None, names: Sequence[str]) -> Mapping[str, Moments]:
    """What is known of the layers' inputs, and for the predicted loss of what the output makes of them."""
    if inputs is None or not problem.is_whitened:
        return {}
    if problem.request.metric != PREDICTED:
        return input_moments(problem.model, inputs, names, progress=False)
    every = [one for name in names for one in (name, *problem.tied[name])]
    logits, seed = problem.request.logits, problem.request.seed
    return fisher_factors(
        problem.model, inputs, every, draws=_DRAWS, logits=logits, seed=seed, joint=False, progress=False
    )


def _of_inputs(moments: Mapping[str, Moments]) -> dict[str, InputMoments]:
    """Those of inputs alone; of a transposed layer the factors have the patches of the gradients."""
    inputs = {name: one.patches if isinstance(one, FisherFactors) else one for name, one in moments.items()}
    return {name: one for name, one in inputs.items() if one.spec == moments[name].spec}


def _trials(problem: PlanningProblem) -> Trials | None:
    if problem.inputs is None or not problem.request.tries:
        return None
    with evaluating(problem.model):
        few = few_of(problem.model, problem.inputs, len(problem.convs))
    return Trials(problem.model, problem.convs, few)


def _task(problem: PlanningProblem, name: str, moments: Mapping[str, Moments], tried: bool) -> LayerCurve:
    request = problem.request
    share = request.share if tried else None
    followers = [one for one in (moments.get(other) for other in problem.tied[name]) if isinstance(one, FisherFactors)]
    return LayerCurve(problem.convs[name], request.options, moments.get(name), share, request.seed, tuple(followers))


def _changes(
    problem: PlanningProblem, trials: Trials, name: str, tried: Sequence[tuple[Option, FactorizedConv]]
) -> list[tuple[Option, float]]:
    """How much the output changes with each compression of a layer that is tried."""
    return [(option, trials.change(name, layer, _followers(problem, name, layer))) for option, layer in tried]


def _identity(option: Option) -> tuple[str, Rank, Axes]:
    return option.method, option.rank, option.axes


def _squared(error: float) -> float:
    return error**2


def _as_it_is(error: float) -> float:
    return error


def _followers(problem: PlanningProblem, name: str, layer: FactorizedConv) -> dict[str, nn.Module]:
    """What stands in the places of the layers that share the weight of one that is tried."""
    model = problem.model
    others: dict[str, nn.Module] = {
        other: follower(name, layer, plain(model.get_submodule(other), problem.request.policy))
        for other in problem.tied[name]
    }
    retie([(one, model.get_submodule(one), new) for one, new in {name: layer, **others}.items()])
    return others


def _passes(problem: PlanningProblem, order: Sequence[str]) -> Iterator[list[str]]:
    """The layers whose moments fit into memory together, and with them their curves."""
    names: list[str] = []
    size = 0
    bytes_of = factor_bytes if problem.request.metric == PREDICTED else moment_bytes
    for name in order:
        needed = problem.is_whitened and reads_features(problem.convs[name])
        more = bytes_of(problem.specs[name]) if needed else 0
        if names and size + more > _MOMENTS:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    if names:
        yield names
