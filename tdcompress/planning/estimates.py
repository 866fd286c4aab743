"""The curves of all layers, and what their errors count for: in passes that fit into memory, with trials between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass

from torch import nn

from tdcompress.batches import evaluating
from tdcompress.gathering import input_moments
from tdcompress.layers import FactorizedConv, InputMoments
from tdcompress.layers.kinds import cpu_sizes, reads_features
from tdcompress.layers.moments import moment_bytes
from tdcompress.planning.curves import LayerCurve, curve_of
from tdcompress.planning.options import Option
from tdcompress.planning.problem import PlanningProblem
from tdcompress.planning.trials import Trials, few_of, loss_of
from tdcompress.shapes import Axes, Rank
from tdcompress.surgery.plain import Policy, plain
from tdcompress.surgery.ties import follower, retie
from tdcompress.work import in_order, one_by_one

# The moments of a layer's inputs have about channels² / groups numbers, see `moment_bytes`. Bytes of all layers'
# together up to which they are kept, because whoever decomposes next needs the same; more are cheaper summed anew.
_KEPT = 128 << 20
# Bytes of the layers of one pass: each further pass runs the model over the data once more.
_MOMENTS = 512 << 20


@dataclass(frozen=True)
class Estimates:
    """What is known of the layers before anything is chosen.

    Attributes:
        curves: the options of every layer, in the order of the problem's layers.
        changes: those options of every layer that were tried, and how much the output changes with each; none without
            data.
        moments: of the layers' inputs, if all of them are small enough to be kept.
    """

    curves: dict[str, list[Option]]
    changes: dict[str, list[tuple[Option, float]]]
    moments: dict[str, InputMoments]

    def loss(self, name: str, curve: Sequence[Option]) -> Callable[[float], float]:
        """What an error of a layer counts: its square, or the change of the output that trials have shown.

        Args:
            name: of the layer.
            curve: its options with errors by the metric that the plan is made by. What was tried is looked up there:
                a change belongs to an error by this metric, of which the first error need not be a multiple.
        """
        error_of = {_identity(option): option.error for option in curve}
        trials = [(error_of[_identity(option)], change) for option, change in self.changes[name]]
        return loss_of(trials) if trials else _squared


def estimated(problem: PlanningProblem, executor: Executor | None, step: Callable[[str], None]) -> Estimates:
    """The curves of all layers; with data every layer is tried at two of its options.

    Args:
        problem: what the plan is about.
        executor: where curves are computed.
        step: called with the name of every layer that is done.
    """
    trials = _trials(problem)
    curves: dict[str, list[Option]] = {}
    changes: dict[str, list[tuple[Option, float]]] = {}
    kept: dict[str, InputMoments] = {}
    keeps = sum(map(moment_bytes, problem.specs.values())) <= _KEPT
    for names in _passes(problem, list(problem.convs) if trials is None else trials.order):
        moments: dict[str, InputMoments] = {}
        if problem.is_whitened and problem.inputs is not None:
            moments = input_moments(problem.model, problem.inputs, names, progress=False)
        if keeps:
            kept.update(moments)
        results = one_by_one(
            curve_of,
            {name: _task(problem, name, moments.pop(name, None), trials is not None) for name in names},
            executor=executor,
            sizes=cpu_sizes({name: problem.convs[name] for name in names}),
        )
        with closing(results):  # layers that are tried, as large as the model's, are gone before the next is solved
            for name, (options, tried) in in_order(results, names):
                curves[name], changes[name] = options, []
                if trials is not None:
                    changes[name] = _changes(problem, trials, name, tried)
                step(name)
    return Estimates({name: curves[name] for name in problem.convs if name in curves}, changes, kept)


def _trials(problem: PlanningProblem) -> Trials | None:
    if problem.inputs is None:
        return None
    with evaluating(problem.model):
        few = few_of(problem.model, problem.inputs, len(problem.convs))
    return Trials(problem.model, problem.convs, few)


def _task(problem: PlanningProblem, name: str, moments: InputMoments | None, tried: bool) -> LayerCurve:
    request = problem.request
    share = request.share if tried else None
    return LayerCurve(problem.convs[name], request.options, moments, share, request.seed)


def _changes(
    problem: PlanningProblem, trials: Trials, name: str, tried: Sequence[tuple[Option, FactorizedConv]]
) -> list[tuple[Option, float]]:
    """How much the output changes with each compression of a layer that is tried."""
    return [(option, trials.change(name, layer, _followers(problem, name, layer))) for option, layer in tried]


def _identity(option: Option) -> tuple[str, Rank, Axes]:
    return option.method, option.rank, option.axes


def _squared(error: float) -> float:
    return error**2


def _followers(problem: PlanningProblem, name: str, layer: FactorizedConv) -> dict[str, nn.Module]:
    """What stands in the places of the layers that share the weight of one that is tried."""
    model = problem.model
    others: dict[str, nn.Module] = {
        other: follower(name, layer, plain(model.get_submodule(other), Policy())) for other in problem.tied[name]
    }
    retie([(one, model.get_submodule(one), new) for one, new in {name: layer, **others}.items()])
    return others


def _passes(problem: PlanningProblem, order: Sequence[str]) -> Iterator[list[str]]:
    """The layers whose moments fit into memory together, and with them their curves."""
    names: list[str] = []
    size = 0
    for name in order:
        needed = problem.is_whitened and reads_features(problem.convs[name])
        more = moment_bytes(problem.specs[name]) if needed else 0
        if names and size + more > _MOMENTS:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    if names:
        yield names
