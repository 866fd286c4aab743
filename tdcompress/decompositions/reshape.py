"""A matrix read as a tensor: its rows and its columns as grids, of which every core takes one axis each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

from torch import Tensor

from tdcompress.decompositions.algebra import check_tensor
from tdcompress.errors import CompressionError

Factors = tuple[tuple[int, ...], tuple[int, ...]]  # of the rows, of the columns


@dataclass(frozen=True)
class Reshape:
    """How the rows and the columns of a matrix are counted in a grid.

    Factor k of the rows and factor k of the columns belong to core k. By default the first factor counts slowest, as in
    `torch.reshape`: row 7 of a grid of 2 × 4 is (1, 3). Strided, it counts fastest: row 7 is (1, 3) of a grid of 2 × 4
    whose columns are filled first.

    Attributes:
        rows: the factors of the number of rows, one a core.
        columns: the factors of the number of columns, one a core.
        strided_rows: whether the first factor of the rows counts fastest.
        strided_columns: whether the first factor of the columns counts fastest.

    >>> import torch
    >>> shape = Reshape((2, 3), (4, 5))
    >>> shape.to_tensor(torch.zeros(6, 20)).shape
    torch.Size([2, 4, 3, 5])
    >>> shape.to_matrix(torch.zeros(2, 4, 3, 5)).shape
    torch.Size([6, 20])
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    strided_rows: bool = False
    strided_columns: bool = False

    @property
    def cores(self) -> int:
        """The number of cores."""
        return len(self.rows)

    @property
    def sizes(self) -> tuple[int, ...]:
        """For every core the product of its two factors."""
        return tuple(out * inner for out, inner in zip(self.rows, self.columns, strict=True))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return math.prod(self.rows), math.prod(self.columns)

    def to_tensor(self, matrix: Tensor) -> Tensor:  # (…, rows, columns) -> (…, rows_1, columns_1, rows_2, columns_2, …)
        """The matrix with two axes for every core: of its rows and of its columns."""
        lead = matrix.shape[:-2]
        grids = [size for size, _ in self._axes]
        order = [place for _, place in self._axes]
        back = [len(lead) + order.index(axis) for axis in range(len(order))]
        return matrix.reshape(*lead, *grids).permute(*range(len(lead)), *back)

    def to_matrix(self, tensor: Tensor) -> Tensor:  # (…, rows_1, columns_1, rows_2, columns_2, …) -> (…, rows, columns)
        """The matrix that `to_tensor` gave the axes of."""
        lead = tensor.ndim - 2 * self.cores
        order = [lead + place for _, place in self._axes]
        return tensor.permute(*range(lead), *order).reshape(*tensor.shape[:lead], *self.shape)

    @property
    def _axes(self) -> list[tuple[int, int]]:
        """In the order in which the matrix counts: the size of an axis, and its place in the tensor."""
        rows = [(size, 2 * core) for core, size in enumerate(self.rows)]
        columns = [(size, 2 * core + 1) for core, size in enumerate(self.columns)]
        return [*(rows[::-1] if self.strided_rows else rows), *(columns[::-1] if self.strided_columns else columns)]


Reshaping = Reshape | Factors | Literal["balanced"]


def divisors(number: int) -> list[int]:
    """All divisors, ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return sorted({*small, *(number // one for one in small)})


@cache
def factorizations(number: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """All ways to write a number as a product of so many factors in order, ones included.

    >>> factorizations(4, 2)
    ((1, 4), (2, 2), (4, 1))
    """
    if parts == 1:
        return ((number,),)
    return tuple((one, *rest) for one in divisors(number) for rest in factorizations(number // one, parts - 1))


def balanced_factors(number: int, parts: int) -> tuple[int, ...]:
    """The most balanced way to write a number as a product, ascending: the field's usual rule.

    Of all factorizations the one whose factors, divided by their sum, have the largest entropy (Hrinchuk et al. 2020,
    in whose library t3nsor it is `auto_shape`).

    >>> balanced_factors(784, 2), balanced_factors(512, 3), balanced_factors(10, 3)
    ((28, 28), (8, 8, 8), (1, 2, 5))
    """
    ascending = [factors for factors in factorizations(number, parts) if list(factors) == sorted(factors)]
    return max(ascending, key=_entropy)


def _entropy(factors: tuple[int, ...]) -> float:
    shares = [factor / sum(factors) for factor in factors]
    return -sum(share * math.log(share) for share in shares)


def as_reshape(given: Reshaping, shape: tuple[int, int], cores: int) -> Reshape:
    """What was given as a `Reshape` of a matrix of `shape`.

    Args:
        given: one, the factors of the rows and those of the columns, or `"balanced"`.
        shape: rows and columns of the matrix.
        cores: how many factors `"balanced"` makes of either.

    Raises:
        CompressionError: the factors do not fit the matrix or each other.

    >>> as_reshape("balanced", (12, 10), 2)
    Reshape(rows=(3, 4), columns=(2, 5), strided_rows=False, strided_columns=False)
    """
    if given == "balanced":
        return Reshape(balanced_factors(shape[0], cores), balanced_factors(shape[1], cores))
    reshape = given if isinstance(given, Reshape) else _read(given)
    factors = (*reshape.rows, *reshape.columns)
    if any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in factors):
        raise CompressionError(
            f"the factors of a reshape must be whole numbers from 1, got {reshape.rows, reshape.columns}."
        )
    if len(reshape.rows) != len(reshape.columns) or reshape.cores < 2:
        raise CompressionError(
            "a reshape has two or more factors of the rows and as many of the columns, got "
            f"{reshape.rows, reshape.columns}; fill up with ones."
        )
    if reshape.shape != shape:
        raise CompressionError(
            f"reshape {reshape.rows, reshape.columns} is for a matrix of {reshape.shape[0]} × {reshape.shape[1]}, and "
            f"this one is {shape[0]} × {shape[1]}; give factors of these numbers, or 'balanced'."
        )
    return reshape


def _read(given: object) -> Reshape:
    sides = tuple(given) if isinstance(given, tuple | list) else ()
    if len(sides) != 2 or not all(isinstance(side, tuple | list) for side in sides):
        raise CompressionError(
            f"a reshape is 'balanced', a Reshape, or two tuples, the factors of the rows and those of the columns, "
            f"got {given!r}."
        )
    return Reshape(tuple(sides[0]), tuple(sides[1]))


def check_matrix(matrix: Tensor, what: str) -> None:
    """Refuse what is no matrix of finite numbers.

    Raises:
        CompressionError: it is none.
    """
    check_tensor(matrix)
    if matrix.ndim != 2:
        raise CompressionError(f"{what} takes a matrix, and got a tensor of shape {tuple(matrix.shape)}.")
