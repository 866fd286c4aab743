"""What solvers that sweep may be told beside when to stop: starts, a penalty, and a bound on the work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from tdcompress.errors import CompressionError

Start = Literal["orthogonal", "random"]

_LEAST = 10  # sweeps that are made however much work they are
_QUICK_SWEEPS, _QUICK_WORK = 60, 1e11  # of layers that are only tried


def sweeps_within(max_iter: int, max_work: float | None, work: float) -> int:
    """Sweeps at the most where one takes `work` multiplications."""
    return max_iter if max_work is None else min(max_iter, max(_LEAST, int(max_work / work)))


def quick_limits(max_iter: int, max_work: float | None) -> tuple[int, float]:
    """`max_iter` and `max_work` where a layer is only tried: a few sweeps, and less work."""
    return min(max_iter, _QUICK_SWEEPS), _QUICK_WORK if max_work is None else min(max_work, _QUICK_WORK)


def check_starts(starts: Sequence[str]) -> None:
    """Refuse to begin nowhere, or where there is no start."""
    if not starts or set(starts) - set(get_args(Start)):
        raise CompressionError(f"starts must name 'orthogonal' or 'random', once or more, got {starts!r}.")


def check_penalized(penalty: float, max_work: float | None) -> None:
    """Refuse a penalty or a bound on the work that means nothing."""
    if not 0 <= penalty < math.inf:
        raise CompressionError(f"penalty must be a number from 0, got {penalty!r}.")
    if max_work is not None and not max_work > 0:
        raise CompressionError(f"max_work must be a number above 0 or None, got {max_work!r}.")
