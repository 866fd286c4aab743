"""What a user asked of a layer -> the arrangements and ranks to try for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING

from torch import Tensor

from tdcompress.decompositions import Solver
from tdcompress.decompositions.algebra import check_rank
from tdcompress.errors import CompressionError
from tdcompress.layers.spec import ConvSpec
from tdcompress.ranks import parameter_budget
from tdcompress.shapes import AskedRank, Axes, Rank

if TYPE_CHECKING:
    from tdcompress.layers.base import FactorizedConv


def arrangements_to_try(
    kind: type[FactorizedConv], spec: ConvSpec, axes: Axes | None, solver: Solver
) -> Sequence[Axes]:
    """All arrangements of the spatial axes that the method has, or the one that was given.

    Raises:
        CompressionError: the method does not have the one that was given.
    """
    known = kind.arrangements(spec.long_axes, solver)
    if axes is None:
        return known
    axes = tuple(tuple(group) for group in axes)
    if axes not in known:
        raise CompressionError(f"{kind.method} has no arrangement {axes} here; there are {known}.")
    return [axes]


def ranks_to_try(
    kind: type[FactorizedConv], spec: ConvSpec, kernels: Tensor, ratio: float | None, rank: AskedRank, solver: Solver
) -> Sequence[Rank]:
    """The ranks for what was asked; none if no rank is small enough.

    Args:
        kind: the method.
        spec: the layer.
        kernels: shape (groups, *modes).
        ratio: the share of the parameters to remove.
        rank: a rank, or the name of a rule.
        solver: what the method is told.

    Raises:
        CompressionError: a rank that cannot be, or an unknown rule.
    """
    modes = tuple(kernels.shape[1:])
    full = kind.full_rank(modes)
    if isinstance(rank, str):
        return [_by_rule(kind, spec, modes, ratio, rank)]
    if rank is not None:
        rank = as_rank(rank, len(full))
        check_rank(rank, full, kind.method)
        return [rank]
    assert ratio is not None
    return kind.choose_ranks(kernels, parameter_budget(spec.numel, ratio) // spec.groups, solver)


def check_asked(ratio: float | None, rank: AskedRank) -> None:
    """Refuse, before anything is said of their values, a ratio and a rank together, or neither.

    Raises:
        CompressionError: it is so, and the rank is not the name of a rule.
    """
    if not isinstance(rank, str) and (ratio is None) == (rank is None):
        found = "neither" if ratio is None else f"both ratio={ratio} and rank={rank}"
        raise CompressionError(f"give either a ratio or a rank, got {found}.")


def as_rank(rank: int | Sequence[int], length: int) -> Rank:
    """One entry a rank, as plain ints where they are whole numbers; `check_rank` refuses the rest."""
    entries = tuple(rank) if isinstance(rank, Iterable) else (rank,) * length
    return tuple(int(r) if isinstance(r, Integral) and not isinstance(r, bool) else r for r in entries)


def check_reachable(kind: type[FactorizedConv], spec: ConvSpec, ratio: float | None, solver: Solver = None) -> None:
    """Refuse, before any work, a layer that is not for this method or that no rank brings to `ratio`.

    Raises:
        CompressionError: it names the largest ratio that can be reached.
    """
    if spec.is_matrix and not kind.takes_linear:
        raise CompressionError(
            f"{kind.method} is for convolutions; the weight of this {spec.kind} is a matrix, which method 'svd' "
            "factorizes best."
        )
    if ratio is not None:
        budget = parameter_budget(spec.numel, ratio)
        smallest = min(_smallest(kind, spec, axes) for axes in kind.arrangements(spec.long_axes, solver))
        if smallest > budget:
            raise CompressionError(_unreachable(kind.method, ratio, smallest, spec.numel))


def _smallest(kind: type[FactorizedConv], spec: ConvSpec, axes: Axes) -> int:
    """The parameters of rank 1."""
    modes = spec.modes(axes)
    return spec.groups * kind.parameters_at(modes, tuple(1 for _ in kind.full_rank(modes)))


def _by_rule(kind: type[FactorizedConv], spec: ConvSpec, modes: Sequence[int], ratio: float | None, name: str) -> Rank:
    if name != "tensorly-torch":
        raise CompressionError(f"unknown rank rule {name!r}; the only rule is 'tensorly-torch'.")
    if ratio is None:
        raise CompressionError("rank='tensorly-torch' is a rule and needs a ratio to work from.")
    separable = len(modes) - 2 == len(spec.long_axes)
    # The rule counts spatial sizes of 1 as modes; a joint mode has nothing to do with them.
    wanted = kind.tensorly_torch_rank(spec.kernel_shape if separable else modes, ratio)
    return kind.nearest_feasible(modes, wanted)


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
