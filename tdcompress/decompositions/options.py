"""What a solver may be told; the defaults need no thought."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, get_args

from typing_extensions import Self

from tdcompress.decompositions.sweeping import Start, check_penalized, check_starts, sweeps_within
from tdcompress.errors import CompressionError

Backend = Literal["own", "tensorly"]


@dataclass(frozen=True)
class Options:
    """What a solver may be told; every method has its own."""

    def __post_init__(self) -> None:
        """For the checks of those that derive from it."""

    @classmethod
    def tensorly(cls) -> Self:
        """What the word `"tensorly"` stands for: tensorly's solver, as the paper ran it.

        Raises:
            CompressionError: tensorly has none.
        """
        raise CompressionError("tensorly has no solver for this method; leave solver= out.")

    @classmethod
    def of(cls, solver: Solver) -> Self:
        """The options that a user means: None for the defaults, the word `"tensorly"`, or options as they are.

        Raises:
            CompressionError: an unknown word, or another method's options.
        """
        if solver is None:
            return cls()
        if solver == "tensorly":
            return cls.tensorly()
        if isinstance(solver, cls) and (cls is not Options or type(solver) is Options):
            return solver
        if cls is Options:
            raise CompressionError(f"this method has no options, got solver={solver!r}; leave it out.")
        raise CompressionError(f"unknown solver {solver!r}; use None, {cls.__name__}(…), or 'tensorly'.")


@dataclass(frozen=True)
class TensorlyOptions(Options):
    """What the options of methods share that tensorly has a solver for, too.

    Attributes:
        backend: `"own"`, or `"tensorly"` for tensorly's solver at its own defaults. What only ours can be told must
            then be left as it is.
    """

    backend: Backend = field(default="own", kw_only=True)

    only_ours: ClassVar[tuple[str, ...]] = ()  # the fields that tensorly's solver would not look at

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend not in get_args(Backend):
            raise CompressionError(f"backend must be 'own' or 'tensorly', got {self.backend!r}.")
        defaults = {one.name: one.default for one in fields(self)}
        ignored = [name for name in self.only_ours if getattr(self, name) != defaults[name]]
        if self.backend == "tensorly" and ignored:
            raise CompressionError(
                f"tensorly's solver runs at its own defaults and cannot be told {', '.join(ignored)}; leave that out, "
                "or take backend='own'."
            )

    @classmethod
    def tensorly(cls) -> Self:
        """Tensorly's solver, everything else by default."""
        return cls(backend="tensorly")


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
        super().__post_init__()
        check_count("max_iter", self.max_iter, least=0)
        if not self.tol >= 0:
            raise CompressionError(f"tol must be a number from 0, got {self.tol!r}.")


@dataclass(frozen=True)
class CPOptions(TensorlyOptions, SweepOptions):
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
        spatial: used where a convolution is decomposed: `"separable"` for a factor along every spatial axis,
            `"joint"` for one along all of them together, `"best"` for whichever of the two loses less under a ratio; a
            rank is then meant for the former.
        max_work: multiplications at the most in all sweeps from a start, of which at least ten are made; None for no
            limit. The default cuts short only what would take minutes: 300 sweeps of a 512 × 512 × 3 × 3 kernel at
            rank 500 stay below.
        backend: `"own"`, or `"tensorly"` for tensorly's solver at its own defaults, from a random start.
    """

    max_iter: int = 300
    tol: float = 4e-5
    starts: tuple[Start, ...] = ("orthogonal",)
    penalty: float = 1e-4
    spatial: Literal["separable", "joint", "best"] = "separable"
    max_work: float | None = 1e12

    only_ours = ("max_iter", "tol", "starts", "penalty", "max_work")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_starts(self.starts)
        check_penalized(self.penalty, self.max_work)
        if self.spatial not in ("separable", "joint", "best"):
            raise CompressionError(f"spatial must be 'separable', 'joint' or 'best', got {self.spatial!r}.")

    def sweeps(self, shape: Sequence[int], rank: int) -> int:
        """Sweeps at the most of a tensor: two products with all of it each, and for every mode a system to solve."""
        work = 2 * math.prod(shape) * rank + rank**2 * (rank * len(shape) / 3 + 2 * sum(shape))
        return sweeps_within(self.max_iter, self.max_work, work)


@dataclass(frozen=True)
class TuckerOptions(TensorlyOptions, SweepOptions):
    """How Tucker is solved.

    Attributes:
        max_iter: sweeps of higher-order orthogonal iteration at the most; 0 for the truncated HOSVD.
        tol: stop when a sweep lowers the relative error by no more than this share of it.
        candidates: for a ratio, how many of the most promising ranks are solved for and compared.
        backend: `"own"`, or `"tensorly"` for tensorly's solver at its own defaults.
    """

    candidates: int = 3

    only_ours = ("max_iter", "tol")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("candidates", self.candidates, least=1)

    @classmethod
    def tensorly(cls) -> Self:
        """Tensorly's solver, at the ranks that the truncated HOSVD is best at."""
        return cls(backend="tensorly", candidates=1)


@dataclass(frozen=True)
class TTOptions(TensorlyOptions, SweepOptions):
    """How the tensor train is solved.

    Attributes:
        max_iter: sweeps of alternating least squares at the most; 0 for TT-SVD alone.
        tol: stop when a sweep lowers the relative error by no more than this share of it.
        orders: which orders of the spatial axes are tried where a convolution is decomposed, `"all"` or
            `"given"`; of several, the one that loses least is taken.
        backend: `"own"`, or `"tensorly"` for tensorly's solver at its own defaults, TT-SVD.
    """

    max_iter: int = 20
    tol: float = 1e-4
    orders: Literal["all", "given"] = "all"

    only_ours = ("max_iter", "tol")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.orders not in ("all", "given"):
            raise CompressionError(f"orders must be 'all' or 'given', got {self.orders!r}.")

    @classmethod
    def tensorly(cls) -> Self:
        """Tensorly's TT-SVD along the axes in the given order."""
        return cls(backend="tensorly", orders="given")


@dataclass(frozen=True)
class SVDOptions(TensorlyOptions):
    """How a convolution is made a matrix, whose best approximation is known in closed form.

    Attributes:
        split: `"channel"`: a convolution with the whole kernel to a few channels, then 1×1. `"spatial"`: one along the
            first axis to a few channels, then one along the others. `"all"`: these and every other way to share the
            axes out between two convolutions; of several, the one that loses least at a ratio is taken, and a rank
            is meant for `"channel"`.
        backend: `"own"`, or `"tensorly"` for tensorly's solver at its own defaults.
    """

    split: Literal["all", "channel", "spatial"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in ("all", "channel", "spatial"):
            raise CompressionError(f"split must be 'all', 'channel' or 'spatial', got {self.split!r}.")

    @classmethod
    def tensorly(cls) -> Self:
        """Tensorly's SVD of the output channels against the rest."""
        return cls(backend="tensorly", split="channel")


Solver = str | Options | None  # what users may say; `Options.of` makes options of it


def check_count(name: str, value: int, least: int) -> None:
    """Refuse an option that is no whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CompressionError(f"{name} must be a whole number from {least}, got {value!r}.")
