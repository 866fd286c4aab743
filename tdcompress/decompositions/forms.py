"""Factors as tensorly and tensorly-torch hold them: one form for each of tensorly's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import mode_dot
from tdcompress.decompositions.chain_forms import TRForm, TTForm, TTMForm
from tdcompress.decompositions.form_parts import check_parts, identity, product_of_rank, shapes_of
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
        check_parts(self.name, [self.weights], 1)
        check_parts(self.name, self.factors, 2)
        if {factor.shape[1] for factor in self.factors} != {len(self.weights)}:
            raise CompressionError(f"a CPTensor has one column a term in every factor, got {shapes_of(self.factors)}.")

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
        check_parts(self.name, [self.core], len(self.factors))
        check_parts(self.name, self.factors, 2)
        if tuple(factor.shape[1] for factor in self.factors) != tuple(self.core.shape):
            shapes = f"{shapes_of(self.factors)} and {tuple(self.core.shape)}"
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
        return cls(core, (*factors, *(identity(size, core) for size in core.shape[len(factors) :])))

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


Form = CPForm | TuckerForm | TTForm | TRForm | TTMForm
