"""Chains of cores as tensorly and tensorly-torch hold them: trains, rings, and trains of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tdcompress.decompositions.form_parts import check_parts, identity, product_of_rank, shapes_of
from tdcompress.decompositions.tensor_ring import tensor_ring_limits
from tdcompress.decompositions.tensor_train import tensor_train_limits
from tdcompress.errors import CompressionError


@dataclass(frozen=True)
class _Chain:
    """Cores of which each meets the next in a bond.

    Attributes:
        cores: one a mode, with the bond before it first and the one behind it last.
    """

    cores: tuple[Tensor, ...]

    name: ClassVar[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(core.shape[1] for core in self.cores)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the classes of that name are made of."""
        return (list(self.cores),)


@dataclass(frozen=True)
class TTForm(_Chain):
    """A chain of cores, as a `TTTensor`.

    Attributes:
        cores: one a mode, (r_{n-1}, size, r_n), with r_0 = r_N = 1.
    """

    name: ClassVar[str] = "TTTensor"

    def __post_init__(self) -> None:
        _check_chain(self.name, self.cores, 3)

    def feasible(self) -> TTForm:
        """The same tensor with no rank above what `tensor_train_limits` says; as it is where none was."""
        cores, limits = list(self.cores), tensor_train_limits(self.shape)
        for place, limit in enumerate(limits):
            core = cores[place]
            if core.shape[2] > limit and core.shape[2] > core.shape[0] * core.shape[1]:
                cores[place + 1] = torch.tensordot(core.flatten(0, 1), cores[place + 1], dims=1)
                cores[place] = identity(core.shape[0] * core.shape[1], core).reshape(*core.shape[:2], -1)
        for place in reversed(range(len(limits))):
            core = cores[place + 1]
            if core.shape[0] > limits[place]:
                cores[place] = torch.tensordot(cores[place], core.flatten(1), dims=1)
                cores[place + 1] = identity(core.shape[1] * core.shape[2], core).reshape(-1, *core.shape[1:])
        return TTForm(tuple(cores))


@dataclass(frozen=True)
class TRForm(_Chain):
    """A chain of cores whose ends share a bond, as a `TRTensor`.

    Attributes:
        cores: one a mode, (r_n, size, r_{n+1}), with the last bond being the first.
    """

    name: ClassVar[str] = "TRTensor"

    def __post_init__(self) -> None:
        check_parts(self.name, self.cores, 3)
        if [core.shape[0] for core in self.cores] != [core.shape[2] for core in (self.cores[-1], *self.cores[:-1])]:
            raise CompressionError(f"the cores of a TRTensor fit each other in a ring, got {shapes_of(self.cores)}.")

    def feasible(self) -> TRForm:
        """The same tensor, bonds above what `tensor_ring_limits` says cut to what a core beside them can fill."""
        cores, count, limits = list(self.cores), len(self.cores), tensor_ring_limits(self.shape)
        for place in [*range(count)] * 2:  # what one core can fill depends on its other bond
            core, behind = cores[place], cores[(place + 1) % count]
            if core.shape[2] <= limits[(place + 1) % count]:
                continue
            left, right = product_of_rank(core.flatten(0, 1), behind.flatten(1))
            cores[place] = left.reshape(*core.shape[:2], -1)
            cores[(place + 1) % count] = right.reshape(-1, *behind.shape[1:])
        return TRForm(tuple(cores))


@dataclass(frozen=True)
class TTMForm(_Chain):
    """A matrix as a chain of cores with a row and a column each, as a `TTMatrix`, or a `BlockTT` of tensorly-torch.

    Attributes:
        cores: one a pair of a factor of the rows and one of the columns, (r_{k-1}, rows_k, columns_k, r_k), with r_0 =
            r_d = 1; the first factors count slowest.
    """

    name: ClassVar[str] = "TTMatrix"

    def __post_init__(self) -> None:
        _check_chain(self.name, self.cores, 4)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns of the matrix."""
        return math.prod(self.rows), math.prod(self.columns)

    @property
    def rows(self) -> tuple[int, ...]:
        """The factors of the rows."""
        return tuple(core.shape[1] for core in self.cores)

    @property
    def columns(self) -> tuple[int, ...]:
        """The factors of the columns."""
        return tuple(core.shape[2] for core in self.cores)

    def feasible(self) -> TTMForm:
        """The same matrix with no rank above what `ttm_limits` says; as it is where none was."""
        train = TTForm(tuple(core.flatten(1, 2) for core in self.cores)).feasible()
        sizes = zip(train.cores, self.rows, self.columns, strict=True)
        return TTMForm(tuple(core.reshape(len(core), out, inner, -1) for core, out, inner in sizes))


def _check_chain(name: str, cores: Sequence[Tensor], order: int) -> None:
    check_parts(name, cores, order)
    if [1, *(core.shape[-1] for core in cores)] != [*(core.shape[0] for core in cores), 1]:
        raise CompressionError(f"the cores of a {name} fit each other and end in ranks of 1, got {shapes_of(cores)}.")
