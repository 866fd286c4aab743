"""What a solver may be told; the defaults need no thought."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from tdcompress.errors import CompressionError

Start = Literal["orthogonal", "random"]


@dataclass(frozen=True)
class Options:
    """What a solver may be told; every method has its own."""


@dataclass(frozen=True)
class SweepOptions(Options):
    """What the options of solvers that sweep share.

    Attributes:
        max_iter: sweeps at the most.
        tol: stop when a sweep lowers the relative error by no more than this share of it.
    """

    max_iter: int = 100
    tol: float = 1e-5

    def __post_init__(self) -> None:
        _check_whole("max_iter", self.max_iter, least=0)
        if not self.tol >= 0:
            raise CompressionError(f"tol must be a number from 0, got {self.tol!r}.")


_LEAST = 10  # sweeps that are made however much work they are


@dataclass(frozen=True)
class CPOptions(SweepOptions):
    """How CP is solved.

    Attributes:
        max_iter: sweeps at the most, for any one start.
        tol: stop when ten sweeps lower the relative error by no more than ten times this share of it.
        starts: what the sweeps begin from; of several, the one that is best after a few sweeps goes on.
            `"orthogonal"` is deterministic and ends a little lower on trained kernels; `"random"` is drawn from the
            seed, is quicker where spectra are flat, and may be named repeatedly.
        penalty: weight of the terms' squared lengths in what is minimized, ‖tensor − Σ terms‖² + penalty · Σ ‖term‖².
            It keeps terms from growing long and cancelling each other; more of it makes the factors sturdier under
            low precision and quantization, at some error.
        spatial: `"separable"` for a factor along every spatial axis, `"joint"` for one along all of them
            together; used where a convolution is decomposed.
        max_work: multiplications at the most in all sweeps from a start, of which at least ten are made; None for no
            limit. The default cuts short only what would take minutes: 300 sweeps of a 512 × 512 × 3 × 3 kernel at
            rank 500 stay below.
    """

    max_iter: int = 300
    tol: float = 4e-5
    starts: tuple[Start, ...] = ("orthogonal",)
    penalty: float = 1e-4
    spatial: Literal["separable", "joint"] = "separable"
    max_work: float | None = 1e12

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.starts or set(self.starts) - {"orthogonal", "random"}:
            raise CompressionError(f"starts must name 'orthogonal' or 'random', once or more, got {self.starts!r}.")
        if not 0 <= self.penalty < math.inf:
            raise CompressionError(f"penalty must be a number from 0, got {self.penalty!r}.")
        if self.spatial not in ("separable", "joint"):
            raise CompressionError(f"spatial must be 'separable' or 'joint', got {self.spatial!r}.")
        if self.max_work is not None and not self.max_work > 0:
            raise CompressionError(f"max_work must be a number above 0 or None, got {self.max_work!r}.")

    def sweeps(self, shape: Sequence[int], rank: int) -> int:
        """Sweeps at the most of a tensor: two products with all of it each, and for every mode a system to solve."""
        if self.max_work is None:
            return self.max_iter
        work = 2 * math.prod(shape) * rank + rank**2 * (rank * len(shape) / 3 + 2 * sum(shape))
        return min(self.max_iter, max(_LEAST, int(self.max_work / work)))


@dataclass(frozen=True)
class TuckerOptions(SweepOptions):
    """How Tucker is solved.

    Attributes:
        max_iter: sweeps of higher-order orthogonal iteration at the most; 0 for the truncated HOSVD.
        tol: stop when a sweep lowers the relative error by no more than this share of it.
        candidates: for a ratio, how many of the most promising ranks are solved for and compared.
    """

    candidates: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_whole("candidates", self.candidates, least=1)


@dataclass(frozen=True)
class TTOptions(SweepOptions):
    """How the tensor train is solved.

    Attributes:
        max_iter: sweeps of alternating least squares at the most; 0 for TT-SVD alone.
        tol: stop when a sweep lowers the relative error by no more than this share of it.
        orders: which orders of the spatial axes are tried where a convolution is decomposed, `"all"` or
            `"given"`; of several, the one that loses least is taken.
    """

    max_iter: int = 20
    tol: float = 1e-4
    orders: Literal["all", "given"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.orders not in ("all", "given"):
            raise CompressionError(f"orders must be 'all' or 'given', got {self.orders!r}.")


@dataclass(frozen=True)
class SVDOptions(Options):
    """How a convolution is made a matrix, whose best approximation is known in closed form.

    Attributes:
        split: `"channel"`: a convolution with the whole kernel to a few channels, then 1×1. `"spatial"`: one along the
            first axis to a few channels, then one along the others. `"all"`: these and every other way to share the
            axes out between two convolutions; of several, the one that loses least at a ratio is taken, and a rank
            is meant for `"channel"`.
    """

    split: Literal["all", "channel", "spatial"] = "all"

    def __post_init__(self) -> None:
        if self.split not in ("all", "channel", "spatial"):
            raise CompressionError(f"split must be 'all', 'channel' or 'spatial', got {self.split!r}.")


Solver = str | Options | None
_Kind = TypeVar("_Kind", bound=Options)


def _check_whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CompressionError(f"{name} must be a whole number from {least}, got {value!r}.")


def resolve(solver: Solver, kind: type[_Kind]) -> _Kind | None:
    """The options that `solver` stands for; None means tensorly's own solver.

    Raises:
        CompressionError: an unknown solver, or another method's options.
    """
    if solver is None:
        return kind()
    if solver == "tensorly":
        return None
    if isinstance(solver, kind):
        return solver
    raise CompressionError(f"unknown solver {solver!r}; use None, {kind.__name__}(…), or 'tensorly'.")
