"""A request -> the arrangements and ranks to try for a layer, and the best of what they give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, SupportsIndex

from torch import Tensor

from tdcompress.decompositions.algebra import check_rank
from tdcompress.errors import CompressionError
from tdcompress.layers.arranging import MethodOptions
from tdcompress.layers.method import Factors, Method
from tdcompress.layers.request import Candidate, Request
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.whitening import Whitening
from tdcompress.ranks import parameter_budget
from tdcompress.shapes import Axes, Rank

_CLOSE = 1e-2  # after a trial: what loses more than this share above the least is not solved for
_ROUNDING = 1e-6  # errors that differ by no more than this share are the same; which is less differs by machine


def best_candidate(
    kind: type[Method[Factors, MethodOptions]],
    spec: ConvSpec,
    weight: Tensor,
    request: Request[MethodOptions],
    whitening: Whitening | None,
) -> Candidate[Factors]:
    """The arrangement and rank that lose least of those to try; of several that lose the same, the smallest.

    Args:
        kind: the method.
        spec: the layer.
        weight: its dense weight.
        request: what is asked.
        whitening: by its inputs; None for the weight as it is.

    Raises:
        CompressionError: an arrangement, rank or rule that cannot be, or no rank is proposed.
    """
    generator = request.generator()

    def solved(pairs: Sequence[tuple[Axes, Rank]], options: MethodOptions) -> list[Candidate[Factors]]:
        candidates = []
        for axes, rank in pairs:
            kernels = kind.seen(weight, spec, axes, whitening)
            found, solution = kind.solve_groups(kernels, rank, options, generator)
            error = solution.relative_error
            if len(pairs) > 1:
                error = kind.compared_by(found, solution, weight, spec, axes, whitening)
            candidates.append(Candidate(axes, rank, found, solution, error))
        return candidates

    pairs = _pairs_to_try(kind, spec, weight, request, whitening)
    if not pairs:  # the smallest rank would fit, but the method offers none
        raise CompressionError(
            f"{kind.method} proposes no rank for ratio={request.ratio}; ask for a lower one, or a rank."
        )
    trial = kind.trial(request.options) if len(pairs) > 1 else None
    if trial is not None:
        pairs = [(one.axes, one.rank) for one in _within(_CLOSE, solved(pairs, trial))]
    alike = _within(_ROUNDING, solved(pairs, request.options))
    return min(alike, key=lambda one: kind.parameters_at(kind.modes_of(spec, one.axes), one.rank))


def _within(share: float, tried: Sequence[Candidate[Factors]]) -> list[Candidate[Factors]]:
    """Those whose error is above the least by no more than this share of it.

    Raises:
        CompressionError: no error is a number.
    """
    errors = [one.error for one in tried if math.isfinite(one.error)]
    if not errors:
        raise CompressionError("its weights are so large that factors and errors overflow; scale them down.")
    least = min(errors)
    return [one for one in tried if one.error <= least + share * (least + _ROUNDING)]


def _pairs_to_try(
    kind: type[Method[Factors, MethodOptions]],
    spec: ConvSpec,
    weight: Tensor,
    request: Request[MethodOptions],
    whitening: Whitening | None,
) -> list[tuple[Axes, Rank]]:
    """Arrangements with ranks; none if no rank is small enough."""
    arrangements = kind.ways_to_try(spec, request.axes, request.options)
    if not arrangements and request.rank is None:
        assert request.ratio is not None
        budget = parameter_budget(spec.numel, request.ratio) // spec.groups
        proposed = kind.proposals(spec, weight, whitening, budget, request.options)
        if proposed:
            return list(proposed)
    arrangements = arrangements or kind.ways(spec, request.options)
    # A rank that was given is meant for the method's own arrangement.
    return [
        (axes, rank)
        for axes in (arrangements if request.rank is None else arrangements[:1])
        for rank in _ranks_to_try(kind, spec, kind.seen(weight, spec, axes, whitening), request)
    ]


def _ranks_to_try(
    kind: type[Method[Factors, MethodOptions]], spec: ConvSpec, kernels: Tensor, request: Request[MethodOptions]
) -> Sequence[Rank]:
    """The ranks for what was asked, of kernels (groups, *modes); none if no rank is small enough."""
    modes, rank = tuple(kernels.shape[1:]), request.rank
    full = kind.full_rank(modes)
    if isinstance(rank, str):
        return [_by_rule(kind, spec, modes, request.ratio, rank)]
    if rank is not None:
        rank = as_rank(rank, len(full))
        check_rank(rank, full, kind.method)
        return [rank]
    assert request.ratio is not None
    return kind.choose_ranks(kernels, parameter_budget(spec.numel, request.ratio) // spec.groups, request.options)


def _by_rule(kind: type[Method], spec: ConvSpec, modes: Sequence[int], ratio: float | None, name: str) -> Rank:
    if name != "tensorly-torch":
        raise CompressionError(f"unknown rank rule {name!r}; the only rule is 'tensorly-torch'.")
    if ratio is None:
        raise CompressionError("rank='tensorly-torch' is a rule and needs a ratio to work from.")
    separable = len(modes) - 2 == len(spec.kernel_axes)
    # The rule counts spatial sizes of 1 as modes; a joint mode has nothing to do with them.
    wanted = kind.tensorly_torch_rank(spec.kernel_shape if separable else modes, ratio)
    return kind.nearest_feasible(modes, wanted)


def as_rank(rank: SupportsIndex | Sequence[SupportsIndex], length: int) -> Rank:
    """One entry a rank, as plain ints where they are whole numbers; `check_rank` refuses the rest."""
    rank = _plain(rank)
    return tuple(map(_plain, rank if isinstance(rank, Iterable) else (rank,) * length))


def _plain(entry: Any) -> Any:
    """The int that a whole number is, of NumPy's and in a tensor, too; anything else as it is."""
    value = entry.item() if getattr(entry, "ndim", None) == 0 else entry
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def check_reachable(
    kind: type[Method], spec: ConvSpec, ratio: float | None, options: MethodOptions, others: Iterable[str] = ()
) -> None:
    """Refuse, before any work, a layer that is not for this method or that no rank brings to a ratio.

    Args:
        kind: the method.
        spec: the layer.
        ratio: the share of the parameters to remove; None for any.
        options: what the method is told.
        others: methods to advise where a layer is not for this one.

    Raises:
        CompressionError: it names the largest ratio that can be reached.
    """
    if not kind.takes(spec):
        reason = kind.refusal(spec)
        if reason is not None:
            raise CompressionError(reason)
        made_for, weight = ("convolutions", "a matrix") if spec.is_matrix else ("matrices", "no matrix")
        known = " or ".join(map(repr, others))
        raise CompressionError(
            f"{kind.method} is for {made_for}; the weight of this {spec.kind} is {weight}. "
            f"Take {f'method {known}' if known else 'another method'}."
        )
    if ratio is not None:
        budget = parameter_budget(spec.numel, ratio)
        smallest = kind.least(spec, options)
        if smallest > budget:
            raise CompressionError(_unreachable(kind.method, ratio, smallest, spec.numel))


def _unreachable(method: str, ratio: float, smallest: int, numel: int) -> str:
    if smallest >= numel:
        return (
            f"{method} cannot make this layer smaller: rank 1 has {smallest} parameters, the dense weight "
            f"{numel}. Leave it dense or use another method."
        )
    nearest = math.floor(1e4 * (1 - smallest / numel)) / 1e4
    return (
        f"{method} cannot reach ratio={ratio}: rank 1, the smallest, keeps {smallest} of {numel} parameters. "
        f"The largest ratio that can be reached is {nearest:.4f}."
    )
