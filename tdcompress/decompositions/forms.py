"""Factors as tensorly and tensorly-torch hold them: one form for each of tensorly's classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import mode_dot
from tdcompress.decompositions.tensor_ring import tensor_ring_limits
from tdcompress.decompositions.tensor_train import tensor_train_limits
from tdcompress.errors import CompressionError


@dataclass(frozen=True)
class CPForm:
    """`Σ_r weights[r] · factors[0][:, r] ∘ … ∘ factors[N][:, r]`, as a `CPTensor`.

    Attributes:
        weights: shape (rank,), of either sign.
        factors: one a mode, (size, rank).
    """

    weights: Tensor
    factors: tuple[Tensor, ...]

    name: ClassVar[str] = "CPTensor"

    def __post_init__(self) -> None:
        _check(self.name, [self.weights], 1)
        _check(self.name, self.factors, 2)
        if {factor.shape[1] for factor in self.factors} != {len(self.weights)}:
            raise CompressionError(f"a CPTensor has one column a term in every factor, got {_shapes(self.factors)}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(factor.shape[0] for factor in self.factors)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the classes of that name are made of."""
        return self.weights, list(self.factors)

    def without_weights(self) -> tuple[Tensor, ...]:
        """Factors that alone give the tensor: the weights spread evenly over them, their signs in the first."""
        share = self.weights.abs() ** (1 / len(self.factors))
        first, *others = (factor * share for factor in self.factors)
        return first * torch.where(self.weights < 0, -1, 1).to(first), *others


@dataclass(frozen=True)
class TuckerForm:
    """`core ×_0 factors[0] … ×_N factors[N]`, as a `TuckerTensor`.

    Attributes:
        core: shape (r_0, …, r_N).
        factors: one a mode, (size, r).
    """

    core: Tensor
    factors: tuple[Tensor, ...]

    name: ClassVar[str] = "TuckerTensor"

    def __post_init__(self) -> None:
        _check(self.name, [self.core], len(self.factors))
        _check(self.name, self.factors, 2)
        if tuple(factor.shape[1] for factor in self.factors) != tuple(self.core.shape):
            shapes = f"{_shapes(self.factors)} and {tuple(self.core.shape)}"
            raise CompressionError(
                f"the factors of a TuckerTensor have a column for every entry of its core, got {shapes}."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(factor.shape[0] for factor in self.factors)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the classes of that name are made of."""
        return self.core, list(self.factors)

    @classmethod
    def partial(cls, core: Tensor, factors: Sequence[Tensor]) -> TuckerForm:
        """With factors of the first modes, and the last ones whole."""
        return cls(core, (*factors, *(_identity(size, core) for size in core.shape[len(factors) :])))

    def core_along(self, kept: Sequence[int]) -> Tensor:
        """The core with all factors multiplied in but those of the modes `kept`."""
        core = self.core
        for mode, factor in enumerate(self.factors):
            if mode not in kept:
                core = mode_dot(core, factor, mode)
        return core

    def feasible(self, limits: Sequence[int]) -> TuckerForm:
        """The same tensor with no rank of the first modes above `limits`; as it is where none was."""
        core, factors = self.core, list(self.factors)
        for mode in [*range(len(limits))] * 2:  # what is feasible along the one depends on the others
            if core.shape[mode] > limits[mode]:
                rest = core.movedim(mode, 0)
                factors[mode], matrix = product_of_rank(factors[mode], rest.flatten(1))
                core = matrix.reshape(-1, *rest.shape[1:]).movedim(0, mode)
        return TuckerForm(core, tuple(factors))


@dataclass(frozen=True)
class TTForm:
    """A chain of cores, as a `TTTensor`.

    Attributes:
        cores: one a mode, (r_{n-1}, size, r_n), with r_0 = r_N = 1.
    """

    cores: tuple[Tensor, ...]

    name: ClassVar[str] = "TTTensor"

    def __post_init__(self) -> None:
        _check_chain(self.name, self.cores, 3)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(core.shape[1] for core in self.cores)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the classes of that name are made of."""
        return (list(self.cores),)

    def feasible(self) -> TTForm:
        """The same tensor with no rank above what `tensor_train_limits` says; as it is where none was."""
        cores, limits = list(self.cores), tensor_train_limits(self.shape)
        for place, limit in enumerate(limits):
            core = cores[place]
            if core.shape[2] > limit and core.shape[2] > core.shape[0] * core.shape[1]:
                cores[place + 1] = torch.tensordot(core.flatten(0, 1), cores[place + 1], dims=1)
                cores[place] = _identity(core.shape[0] * core.shape[1], core).reshape(*core.shape[:2], -1)
        for place in reversed(range(len(limits))):
            core = cores[place + 1]
            if core.shape[0] > limits[place]:
                cores[place] = torch.tensordot(cores[place], core.flatten(1), dims=1)
                cores[place + 1] = _identity(core.shape[1] * core.shape[2], core).reshape(-1, *core.shape[1:])
        return TTForm(tuple(cores))


@dataclass(frozen=True)
class TRForm:
    """A chain of cores whose ends share a bond, as a `TRTensor`.

    Attributes:
        cores: one a mode, (r_n, size, r_{n+1}), with the last bond being the first.
    """

    cores: tuple[Tensor, ...]

    name: ClassVar[str] = "TRTensor"

    def __post_init__(self) -> None:
        _check(self.name, self.cores, 3)
        if [core.shape[0] for core in self.cores] != [core.shape[2] for core in (self.cores[-1], *self.cores[:-1])]:
            raise CompressionError(f"the cores of a TRTensor fit each other in a ring, got {_shapes(self.cores)}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(core.shape[1] for core in self.cores)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the classes of that name are made of."""
        return (list(self.cores),)

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
class TTMForm:
    """A matrix as a chain of cores with a row and a column each, as a `TTMatrix`, or a `BlockTT` of tensorly-torch.

    Attributes:
        cores: one a pair of a factor of the rows and one of the columns, (r_{k-1}, rows_k, columns_k, r_k), with r_0 =
            r_d = 1; the first factors count slowest.
    """

    cores: tuple[Tensor, ...]

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

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the classes of that name are made of."""
        return (list(self.cores),)

    def feasible(self) -> TTMForm:
        """The same matrix with no rank above what `ttm_limits` says; as it is where none was."""
        train = TTForm(tuple(core.flatten(1, 2) for core in self.cores)).feasible()
        sizes = zip(train.cores, self.rows, self.columns, strict=True)
        return TTMForm(tuple(core.reshape(len(core), out, inner, -1) for core, out, inner in sizes))


Form = CPForm | TuckerForm | TTForm | TRForm | TTMForm


def product_of_rank(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """`left @ right` as two factors again whose rank is no larger than either side; those given where it was not.

    Args:
        left: shape (rows, rank).
        right: shape (rank, columns).

    >>> [tuple(one.shape) for one in product_of_rank(torch.ones(3, 5), torch.ones(5, 4))]
    [(3, 3), (3, 4)]
    """
    rows, columns = left.shape[0], right.shape[1]
    if left.shape[1] <= min(rows, columns):
        return left, right
    product = left @ right
    return (_identity(rows, left), product) if rows <= columns else (product, _identity(columns, left))


def _identity(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _check(name: str, tensors: Sequence[Tensor], order: int) -> None:
    if not tensors or any(tensor.ndim != order or not tensor.numel() for tensor in tensors):
        raise CompressionError(f"in a {name} arrays with {order} modes are needed here, got {_shapes(tensors)}.")
    kinds = {tensor.dtype for tensor in tensors}
    if not all(kind.is_floating_point for kind in kinds):
        raise CompressionError(f"the {name} must be of real floating-point numbers, got {', '.join(map(str, kinds))}.")


def _check_chain(name: str, cores: Sequence[Tensor], order: int) -> None:
    _check(name, cores, order)
    if [1, *(core.shape[-1] for core in cores)] != [*(core.shape[0] for core in cores), 1]:
        raise CompressionError(f"the cores of a {name} fit each other and end in ranks of 1, got {_shapes(cores)}.")


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "none"
