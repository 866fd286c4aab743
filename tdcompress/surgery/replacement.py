"""Layers of a model in the place of others: each solved by itself, ties kept, and all of them or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from torch import nn

from tdcompress.decompositions.algebra import check_tensor
from tdcompress.errors import warn
from tdcompress.layers import ConvSpec, FactorizedConv
from tdcompress.layers.kinds import cpu_sizes, weight_of
from tdcompress.layers.request import Request
from tdcompress.layers.search import check_reachable
from tdcompress.methods import taking
from tdcompress.progress import Progress, following
from tdcompress.surgery.left import Refusals, left_dense
from tdcompress.surgery.selection import Named
from tdcompress.surgery.swap import swapped
from tdcompress.surgery.ties import cut_ties, follower, misfits, retie, tied_groups
from tdcompress.work import solved


@dataclass(frozen=True)
class Problem:
    """A layer to factorize and what was asked of it; what goes to a worker."""

    kind: type[FactorizedConv]
    conv: nn.Module
    request: Request

    def check(self) -> None:
        """Refuse at once what would be refused after the work on other layers.

        Raises:
            CompressionError: the layer cannot be factorized like that.
        """
        self.request.check()
        spec = ConvSpec.of(self.conv)
        check_reachable(self.kind, spec, self.request.bound, self.request.options, taking(spec))
        check_tensor(weight_of(self.conv))

    def solution(self) -> FactorizedConv:
        """The factorized layer."""
        return self.kind.factorized(self.conv, self.request)


@dataclass(frozen=True)
class Replacement:
    """Which layers shall be factorized, and how.

    Attributes:
        selected: the layers.
        problems: what is asked of each of them that is not refused yet. Of layers that share their weight it counts for
            the first of their group, see `tied_groups`.
        refused: where refusals are noted or raised.
        skipped: the layers that were left out, and why.
    """

    selected: Sequence[Named]
    problems: Mapping[str, Problem]
    refused: Refusals
    skipped: Mapping[str, str]


def replaced(
    model: nn.Module, wanted: Replacement, *, inplace: bool, executor: Executor | None, progress: Progress
) -> nn.Module:
    """The model with layers factorized, each as its own problem says.

    Args:
        model: see `decompose`.
        wanted: the layers, and what shall become of them.
        inplace: see `decompose`.
        executor: see `decompose`.
        progress: see `decompose`.

    Raises:
        CompressionError: see `decompose`.
    """
    refused, problems = wanted.refused, wanted.problems
    remaining = _untied(model, wanted.selected, refused)
    groups = tied_groups(remaining)
    tasks = {name: problems[name] for (name, _), *_ in groups}
    in_order = any(isinstance(one.request.seed, torch.Generator) for one in tasks.values())  # they take turns
    sizes = None if in_order else cpu_sizes({name: one.conv for name, one in tasks.items()})
    with following(progress, len(tasks), "decompose") as step:
        layers = solved(Problem.solution, tasks, step=step, executor=executor, refused=refused.noted, sizes=sizes)
    for (first, _), *others in groups:
        for name, _ in others if first in layers else []:
            with refused.of(name):
                layers[name] = follower(first, layers[first], problems[name].conv)
    swaps = [(name, old, layers[name]) for name, old in _untied(model, remaining, refused, layers)]
    retie(swaps)
    for name, _, new in swaps:
        if isinstance(new, FactorizedConv) and new.growth:
            warn(f"layer {name!r}: {new.growth}")
    left = {**left_dense(model), **wanted.skipped, **refused.texts}
    done = {name for name, _, _ in swaps}
    return swapped(
        model, swaps, inplace=inplace, left={name: reason for name, reason in left.items() if name not in done}
    )


def _untied(
    model: nn.Module, layers: Sequence[Named], refused: Refusals, new: Mapping[str, nn.Module] | None = None
) -> list[Named]:
    """The layers that are not refused and share no parameter with a layer that stays as it is.

    Args:
        model: the model.
        layers: which it is about.
        refused: where those are noted that share one.
        new: what shall take the layers' places; refused is then, too, what cannot share what the old ones shared.
    """
    while True:
        remaining = refused.remaining(layers)
        tied = cut_ties(model, remaining)
        if new is not None:
            tied = {**misfits([(name, old, new[name]) for name, old in remaining if name in new]), **tied}
        if not tied:
            return remaining
        for name, _ in remaining:
            if name in tied:
                with refused.of(name):
                    raise tied[name]
