"""Options of the solvers that read a matrix through a grid of its rows and one of its columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tdcompress.decompositions.options import Backend, SweepOptions, TensorlyOptions  # noqa: F401 (hints of inherited fields)
from tdcompress.decompositions.reshape import Factors, Reshape
from tdcompress.errors import CompressionError

Shapes = Reshape | Factors | Literal["balanced", "best"]


@dataclass(frozen=True)
class KroneckerOptions(TensorlyOptions):
    """How a matrix is read for a sum of Kronecker products.

    Attributes:
        reshape: `"best"`: for a ratio, the shapes of the two factors with which least of the weight is lost, while a
            rank is meant for the balanced ones; `"balanced"`; or the shapes,
            `((rows_1, rows_2), (columns_1, columns_2))`.
        backend: `"own"`, or `"tensorly"` for tensorly's SVD of the rearranged matrix.
    """

    reshape: Shapes = "best"


@dataclass(frozen=True)
class BLROptions(TensorlyOptions):
    """How a matrix is cut into blocks of low rank.

    Attributes:
        reshape: `"best"`: for a ratio, the grid with which least of the weight is lost, while a rank is meant for the
            balanced one; `"balanced"`: Monarch's; or the grid,
            `((row blocks, rows of a block), (column blocks, columns of a block))`.
        backend: `"own"`, or `"tensorly"` for tensorly's SVD of every block.
    """

    reshape: Shapes = "best"


@dataclass(frozen=True)
class TTMOptions(TensorlyOptions, SweepOptions):
    """How a matrix is read as a tensor train of its rows and columns, and how the train is solved.

    Attributes:
        max_iter: sweeps of alternating least squares at the most; 0 for TT-SVD alone.
        tol: stop when a sweep lowers the relative error by no more than this share of it.
        reshape: `"best"`: for a ratio, the shapes of the cores with which least of the weight is lost, while a rank is
            meant for the balanced ones of three cores; `"balanced"`; or the shapes,
            `((rows_1, …, rows_d), (columns_1, …, columns_d))`.
        cores: how many cores there may be, from 2 to 4, where none are given.
        backend: `"own"`, or `"tensorly"` for tensorly's TT-SVD of the rearranged matrix.
    """

    max_iter: int = 20
    tol: float = 1e-4
    reshape: Shapes = "best"
    cores: tuple[int, ...] = (2, 3, 4)

    only_ours = ("max_iter", "tol")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cores or set(self.cores) - {2, 3, 4}:
            raise CompressionError(f"cores must name 2, 3 or 4, got {self.cores!r}.")
