"""What the methods have in common: a ratio as a budget of parameters, steps of ranks, and tails of spectra."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from numbers import Rational, Real

import torch
from torch import Tensor

from tdcompress.errors import CompressionError
from tdcompress.shapes import Point, Rank


def kept_share(ratio: float) -> Fraction:
    """The share that is kept when `ratio` is removed, exact in decimal: of 0.9 a tenth.

    Args:
        ratio: the share to remove, in (0, 1). It is taken as it prints, since `1 - 0.9` in binary is below a tenth.

    Raises:
        CompressionError: `ratio` is no number in (0, 1).

    >>> kept_share(0.9), 1 - 0.9 < 0.1
    (Fraction(1, 10), True)
    """
    if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 < ratio < 1:
        raise CompressionError(
            f"ratio must be between 0 and 1, got {ratio!r}; it is the share of the parameters to remove, "
            "so ratio=0.9 keeps a tenth."
        )
    return 1 - (Fraction(ratio) if isinstance(ratio, Rational) else Fraction(str(ratio)))


def parameter_budget(numel: int, ratio: float) -> int:
    """The most parameters that a weight may keep: the whole ones in its `kept_share`.

    Args:
        numel: the parameters of the weight.
        ratio: the share to remove, in (0, 1).

    Raises:
        CompressionError: `ratio` is no number in (0, 1).

    >>> parameter_budget(36864, 0.9), parameter_budget(1000, 0.9)
    (3686, 100)
    """
    return math.floor(kept_share(ratio) * numel)


def grown(rank: Rank, useful: Callable[[Rank], bool]) -> Rank:
    """Raise single ranks, lowest first, until no further step is useful."""
    while True:
        steps = [tuple(r + (i == j) for j, r in enumerate(rank)) for i in range(len(rank))]
        steps = [step for step in steps if useful(step)]
        if not steps:
            return rank
        rank = min(steps, key=max)


def tail_shares(squares: Tensor) -> list[float]:
    """[r]: the share of the energy that is lost if r values are kept."""
    total = float(squares.sum()) or 1.0
    lost = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)]) / total
    return [float(share) for share in lost]


def points_at(budgets: Sequence[int], at: Callable[[int], list[Point]]) -> list[Point]:
    """The points at all budgets, each rank once."""
    return list({rank: (rank, lost) for budget in budgets for rank, lost in at(budget)}.values())
