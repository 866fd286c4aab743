"""Methods that decompose a matrix as it is read through a grid: shapes for a budget, whitening, and the way back."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from tdcompress.decompositions import Reshape, Solution
from tdcompress.decompositions.chain_forms import TTMForm
from tdcompress.decompositions.forms import Form
from tdcompress.errors import CompressionError
from tdcompress.layers.grid import as_axes, as_reshape_of, columns_of, matrices_of, reshape_of, shape_of
from tdcompress.layers.gridded import GriddedConv
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.whitening import Whitening, moment_root
from tdcompress.ranks import ReshapedRank
from tdcompress.ranks.reshaped import Spectra
from tdcompress.shapes import Axes, Point, Rank

_WHITENED = 4  # of the shapes that promise most, so many are solved for where features count


class ReshapedConv(GriddedConv):
    """A linear layer or a 1×1 convolution as what is made of its matrix, read through a grid.

    A subclass says how it reads, solves and multiplies; `modes` are (rows_1, columns_1, rows_2, columns_2, …), and
    `kernels` (groups, *modes).
    """

    solved_for: ClassVar[int] = 1  # of the most promising shapes, where the weight counts as it is

    # --- what a method fills in -------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def best_shapes(matrices: Tensor, budgets: Sequence[int], options: Any, count: int = 1) -> list[list[ReshapedRank]]:
        """For every budget of one group the most promising shapes with their ranks, best first.

        Args:
            matrices: shape (groups, rows, columns).
            budgets: parameters for one group.
            options: whose `reshape` says which shapes there are.
            count: how many at the most.
        """

    @staticmethod
    @abstractmethod
    def foreseen(spectra: Spectra, reshape: Reshape, rank: Rank) -> float:
        """The share of the squared norm that is lost, or a bound on it."""

    @staticmethod
    @abstractmethod
    def unwhitened(decomposition: Any, roots: Sequence[Tensor]) -> Any:
        """A decomposition with every root, as `column_roots` gives them, taken out of its factors' column axes."""

    @staticmethod
    def column_roots(moment: Tensor, reshape: Reshape) -> list[Tensor]:
        """The roots of the second moment over the columns along every axis of their grid: the others summed out.

        Args:
            moment: shape (columns, columns).
            reshape: whose columns it is about.

        Returns:
            For every core (columns_k, columns_k).
        """
        order = columns_of(reshape, moment.device)
        grid = moment[order][:, order].reshape(*reshape.columns, *reshape.columns)
        roots = []
        for core in range(reshape.cores):
            moved = grid.movedim((core, core + reshape.cores), (0, 1))
            size, rest = reshape.columns[core], moment.shape[0] // reshape.columns[core]
            summed = moved.reshape(size, size, rest, rest).diagonal(dim1=2, dim2=3).sum(-1)
            roots.append(moment_root(summed))
        return roots

    @staticmethod
    def whitened(kernel: Tensor, roots: Sequence[Tensor]) -> Tensor:
        """One group's kernel, (*modes), times every root along its column axis."""
        for core, root in enumerate(roots):
            kernel = torch.tensordot(kernel, root.to(kernel), dims=([2 * core + 1], [0])).movedim(-1, 2 * core + 1)
        return kernel

    # --- what is solved ---------------------------------------------------------------------------------

    @classmethod
    def seen(cls, weight: Tensor, spec: ConvSpec, axes: Axes, whitening: Whitening | None) -> Tensor:
        """The groups' matrices as tensors, whitened along every axis of the grid of their columns."""
        kernels = as_reshape_of(axes).to_tensor(matrices_of(weight, spec))
        if whitening is None:
            return kernels
        pairs = zip(kernels, cls._roots(axes, whitening), strict=True)
        whitened = torch.stack([cls.whitened(kernel.double(), roots) for kernel, roots in pairs])
        return whitened.to(torch.promote_types(weight.dtype, torch.float32))

    @classmethod
    def stage_kernels(
        cls, decompositions: Sequence[Any], parts: Sequence[ConvSpec], axes: Axes, whitening: Whitening | None
    ) -> Iterator[Tensor]:
        """Whitening is undone on the factors."""
        if whitening is not None:
            decompositions = cls._of_the_weight(decompositions, axes, whitening)
        yield from super().stage_kernels(decompositions, parts, axes, None)

    @classmethod
    def _of_the_weight(cls, decompositions: Sequence[Any], axes: Axes, whitening: Whitening) -> list[Any]:
        """The groups' decompositions of what `seen` gave, whitening undone."""
        pairs = zip(decompositions, cls._roots(axes, whitening), strict=True)
        return [cls.unwhitened(one, roots) for one, roots in pairs]

    @classmethod
    def _roots(cls, axes: Axes, whitening: Whitening) -> list[list[Tensor]]:
        """For every group its `column_roots`."""
        return [cls.column_roots(moment, as_reshape_of(axes)) for moment in whitening.channels]

    @classmethod
    def compared_by(
        cls,
        decompositions: Sequence[Any],
        solution: Solution,
        weight: Tensor,
        spec: ConvSpec,
        axes: Axes,
        whitening: Whitening | None,
    ) -> float:
        """With inputs, the error of the features by their second moment as it is.

        What is solved for is whitened by a Kronecker product, another one for every shape, whose errors say nothing of
        each other.
        """
        if whitening is None:
            return solution.relative_error
        found = cls._of_the_weight(decompositions, axes, whitening)
        kernels = torch.stack([one.reshape.to_tensor(one.to_dense().double()) for one in found])
        dense = matrices_of(weight, spec).double()
        change, moments = dense - as_reshape_of(axes).to_matrix(kernels), whitening.channels.to(dense)
        seen, lost = (float(((rows @ moments) * rows).sum().clamp(min=0)) for rows in (dense, change))
        return math.sqrt(lost / seen) if seen else 0.0

    @classmethod
    def choose_ranks(cls, kernels: Tensor, budget: int, options: Any) -> Sequence[Rank]:
        """The most promising ranks of this shape."""
        return [one.rank for (found,) in [cls._of_this_shape(kernels, [budget], options)] for one in found]

    @classmethod
    def curve(cls, kernels: Tensor, budgets: Sequence[int], options: Any) -> Sequence[Point]:
        """What this shape loses, or a bound on it."""
        found = cls._of_this_shape(kernels, budgets, options)
        return list(dict.fromkeys((one.rank, one.lost) for some in found for one in some))

    @classmethod
    def _of_this_shape(cls, kernels: Tensor, budgets: Sequence[int], options: Any) -> list[list[ReshapedRank]]:
        shape = reshape_of(kernels.shape[1:])
        return cls.best_shapes(shape.to_matrix(kernels), budgets, replace(options, reshape=shape))

    @classmethod
    def proposals(
        cls, spec: ConvSpec, weight: Tensor, whitening: Whitening | None, budget: int, options: Any
    ) -> Sequence[tuple[Axes, Rank]]:
        """The shapes and ranks that lose least of the weight; with inputs a few more, for `compared_by`."""
        count = cls.solved_for if whitening is None else _WHITENED
        (proposed,) = cls.best_shapes(matrices_of(weight, spec), [budget], options, count)
        return [(as_axes(one.reshape), one.rank) for one in proposed]

    @classmethod
    def points(
        cls,
        spec: ConvSpec,
        weight: Tensor,
        whitening: Whitening | None,
        budgets: Callable[[int], Sequence[int]],
        options: Any,
    ) -> Iterator[tuple[Axes, Rank, float]]:
        """The best shape for every budget; with inputs, what that one loses of the features."""
        least = cls.least_parameters(shape_of(spec), options)
        if least is None:
            return
        spectra: dict[Reshape, Spectra] = {}  # of the features; many budgets have the same best shape
        for found in cls.best_shapes(matrices_of(weight, spec), budgets(least), options):
            for one in found:
                axes, lost = as_axes(one.reshape), one.lost
                if whitening is not None:
                    if one.reshape not in spectra:
                        kernels = cls.seen(weight, spec, axes, whitening)
                        spectra[one.reshape] = Spectra(one.reshape.to_matrix(kernels))
                    lost = cls.foreseen(spectra[one.reshape], one.reshape, one.rank)
                yield axes, one.rank, min(1.0, lost)

    # --- and back ---------------------------------------------------------------------------------------

    @classmethod
    def of_forms(cls, forms: Sequence[Form], spec: ConvSpec, axes: Axes | None = None) -> Self:
        """A layer of the given factors, one form a group; its shape is theirs, and `axes` say what is strided."""
        reason = cls.refusal(spec)
        if reason is not None:
            raise CompressionError(reason)
        first = forms[0]
        if not isinstance(first, TTMForm):
            raise CompressionError(f"{cls.method} is made of a TTMatrix, if of anything; this is a {first.name}.")
        if axes is None or tuple(map(tuple, axes[:2])) != (first.rows, first.columns):
            axes = (first.rows, first.columns, (0, 0))
        axes = tuple(tuple(group) for group in axes)
        cls.check_axes(spec, axes)
        return cls._of_forms_along(forms, spec, axes)

    @property
    def weight(self) -> Tensor:
        """The dense weight that the stack stands for; differentiable."""
        kernels = self._dense_kernels()
        return self.spec.to_weight(kernels.reshape(*kernels.shape[:3], *self.spec.kernel_size))
