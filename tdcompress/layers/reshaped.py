"""What layers share whose weight is a matrix that is read through a grid of its rows and one of its columns."""

from __future__ import annotations

import reprlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tdcompress.decompositions import Reshape
from tdcompress.decompositions.forms import Form, TTMForm
from tdcompress.decompositions.reshape import as_reshape
from tdcompress.decompositions.reshaped_options import Shapes
from tdcompress.errors import CompressionError
from tdcompress.layers.base import FactorizedConv
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.whitening import Whitening, divided, moment_root
from tdcompress.ranks import ReshapedRank
from tdcompress.ranks.reshaped import Spectra
from tdcompress.shapes import Axes, Point, Rank


class ReshapedConv(FactorizedConv):
    """A linear layer or a 1×1 convolution whose stages see their inputs through a grid.

    Between the stages stand modules that only rearrange (`Regroup`); the last of them adds the bias. The arrangement
    `axes` is the reshape: the factors of the rows, those of the columns, and whether either is strided, 0 or 1.

    A subclass says how it reads, solves and multiplies; `modes` are (rows_1, columns_1, rows_2, columns_2, …), and
    `kernels` (groups, *modes).
    """

    takes_linear = True
    cores: ClassVar[int] = 2  # of the balanced shape
    most_cores: ClassVar[int] = 2

    # --- what a method fills in -------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def best_shapes(matrices: Tensor, budgets: Sequence[int], options: Any) -> list[list[ReshapedRank]]:
        """For every budget of one group the most promising shapes with their ranks, best first.

        Args:
            matrices: shape (groups, rows, columns).
            budgets: parameters for one group.
            options: whose `reshape` says which shapes there are.
        """

    @staticmethod
    @abstractmethod
    def least_parameters(shape: tuple[int, int], options: Any) -> int | None:
        """Of all shapes that the options allow at rank one; None if there are none."""

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

    # --- arrangements are reshapes ----------------------------------------------------------------------

    @classmethod
    def takes(cls, spec: ConvSpec) -> bool:
        """All matrices of features."""
        return cls.refusal(spec) is None

    @classmethod
    def refusal(cls, spec: ConvSpec) -> str | None:
        """All but matrices of features."""
        if spec.kernel_axes:
            size = "×".join(map(str, spec.kernel_size))
            return (
                f"{cls.method} is for matrices, those of linear layers and 1×1 convolutions, and the kernel of this "
                f"{spec.kind} is {size}; use a method for convolutions."
            )
        if not spec.adapter.reads_features:
            return (
                f"{cls.method} reads features through a grid, and the {spec.kind} takes numbers of rows; use method "
                "'svd' for it."
            )
        return None

    @classmethod
    def ways(cls, spec: ConvSpec, options: Any) -> Sequence[Axes]:
        """The reshape that was given, or the balanced one."""
        given: Shapes = "balanced" if options.reshape == "best" else options.reshape
        return [_as_axes(cls.given(given, _shape(spec)))]

    @classmethod
    def given(cls, reshape: Shapes, shape: tuple[int, int]) -> Reshape:
        """The reshape of a matrix that was given, or the balanced one."""
        assert reshape != "best"
        return as_reshape(reshape, shape, cls.cores)

    @classmethod
    def ways_to_try(cls, spec: ConvSpec, axes: Axes | None, options: Any) -> Sequence[Axes]:
        """The one that was given; none for `"best"`, which depends on the values of the weight."""
        if axes is not None:
            axes = tuple(tuple(group) for group in axes)
            cls.check_axes(spec, axes)
            return [axes]
        return [] if options.reshape == "best" else cls.ways(spec, options)

    @classmethod
    def check_axes(cls, spec: ConvSpec, axes: Axes) -> None:
        """Refuse what is no reshape of this layer's matrix."""
        if len(axes) != 3 or len(axes[2]) != 2 or not set(axes[2]) <= {0, 1}:
            raise CompressionError(
                f"axes {reprlib.repr(axes)} are no arrangement of {cls.method}: it is the factors of the rows, those "
                "of the columns, and 0 or 1 for either, whether it is strided."
            )
        if not len(axes[0]) == len(axes[1]) <= cls.most_cores:
            raise CompressionError(
                f"{cls.method} has at most {cls.most_cores} factors of the rows and as many of the columns."
            )
        as_reshape(as_reshape_of(axes), _shape(spec), cls.cores)

    @classmethod
    def modes_of(cls, spec: ConvSpec, axes: Axes) -> tuple[int, ...]:
        """(rows_1, columns_1, rows_2, columns_2, …)."""
        return tuple(size for pair in zip(axes[0], axes[1], strict=True) for size in pair)

    @classmethod
    def least(cls, spec: ConvSpec, options: Any) -> int:
        """Of the shapes that the options allow."""
        least = cls.least_parameters(_shape(spec), options)
        if least is None:
            rows, columns = _shape(spec)
            raise CompressionError(
                f"{cls.method} has no shape for a matrix of {rows} × {columns} but the one that is an SVD; use 'svd'."
            )
        return spec.groups * least

    @staticmethod
    def deterministic(options: Any) -> bool:
        """Always: nothing is drawn."""
        return True

    # --- what is solved ---------------------------------------------------------------------------------

    @classmethod
    def seen(cls, weight: Tensor, spec: ConvSpec, axes: Axes, whitening: Whitening | None) -> Tensor:
        """The groups' matrices as tensors, whitened along every axis of the grid of their columns."""
        reshape = as_reshape_of(axes)
        kernels = reshape.to_tensor(_matrices(weight, spec))
        if whitening is None:
            return kernels
        roots = [cls.column_roots(moment, reshape) for moment in whitening.channels]
        whitened = torch.stack(
            [cls.whitened(kernel.double(), some) for kernel, some in zip(kernels, roots, strict=True)]
        )
        return whitened.to(torch.promote_types(weight.dtype, torch.float32))

    @classmethod
    def stage_kernels(
        cls, decompositions: Sequence[Any], parts: Sequence[ConvSpec], axes: Axes, whitening: Whitening | None
    ) -> Iterator[Tensor]:
        """Whitening is undone on the factors."""
        if whitening is not None:
            roots = [cls.column_roots(moment, as_reshape_of(axes)) for moment in whitening.channels]
            decompositions = [cls.unwhitened(one, some) for one, some in zip(decompositions, roots, strict=True)]
        yield from super().stage_kernels(decompositions, parts, axes, None)

    @classmethod
    def choose_ranks(cls, kernels: Tensor, budget: int, options: Any) -> Sequence[Rank]:
        """The most promising ranks of this shape."""
        return [one.rank for (found,) in [cls._of_this_shape(kernels, [budget], options)] for one in found]

    @classmethod
    def curve(cls, kernels: Tensor, budgets: Sequence[int], options: Any) -> Sequence[Point]:
        """What this shape loses, or a bound on it."""
        found = cls._of_this_shape(kernels, budgets, options)
        return list(dict.fromkeys((one.rank, one.lost) for some in found for one in some[:1]))

    @classmethod
    def _of_this_shape(cls, kernels: Tensor, budgets: Sequence[int], options: Any) -> list[list[ReshapedRank]]:
        shape = reshape_of(kernels.shape[1:])
        return cls.best_shapes(shape.to_matrix(kernels), budgets, replace(options, reshape=shape))

    @classmethod
    def proposals(cls, spec: ConvSpec, weight: Tensor, budget: int, options: Any) -> Sequence[tuple[Axes, Rank]]:
        """The shapes and ranks that lose least of the weight, whatever its inputs are."""
        (proposed,) = cls.best_shapes(_matrices(weight, spec), [budget], options)
        return [(_as_axes(one.reshape), one.rank) for one in proposed]

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
        least = cls.least_parameters(_shape(spec), options)
        if least is None:
            return
        spectra: dict[Reshape, Spectra] = {}  # of the features; many budgets have the same best shape
        for found in cls.best_shapes(_matrices(weight, spec), budgets(least), options):
            for one in found[:1]:
                axes, lost = _as_axes(one.reshape), one.lost
                if whitening is not None:
                    if one.reshape not in spectra:
                        kernels = cls.seen(weight, spec, axes, whitening)
                        spectra[one.reshape] = Spectra(one.reshape.to_matrix(kernels))
                    lost = cls.foreseen(spectra[one.reshape], one.reshape, one.rank)
                yield axes, one.rank, min(1.0, lost)

    # --- and back ---------------------------------------------------------------------------------------

    @classmethod
    def of_forms(cls, forms: Sequence[Form], spec: ConvSpec, axes: Axes | None = None) -> Any:
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


def as_reshape_of(axes: Axes) -> Reshape:
    """The reshape that an arrangement is."""
    rows, columns, (strided_rows, strided_columns) = axes
    return Reshape(tuple(rows), tuple(columns), bool(strided_rows), bool(strided_columns))


def reshape_of(modes: Sequence[int]) -> Reshape:
    """The reshape, nothing of it strided, with these modes."""
    return Reshape(tuple(modes[0::2]), tuple(modes[1::2]))


def columns_of(reshape: Reshape, device: torch.device | None = None) -> Tensor:
    """The columns of a matrix in the order of the grid."""
    numbers = torch.arange(reshape.shape[1], device=device)[None]
    alone = Reshape((1,) * reshape.cores, reshape.columns, False, reshape.strided_columns)
    return alone.to_tensor(numbers).flatten()


def over_columns(factor: Tensor, root: Tensor, axis: int) -> Tensor:
    """A factor with a root taken out along the axis of its columns."""
    moved = factor.double().movedim(axis, -1)
    return divided(moved.reshape(-1, moved.shape[-1]), root).reshape(moved.shape).movedim(-1, axis).to(factor.dtype)


def _as_axes(reshape: Reshape) -> Axes:
    return reshape.rows, reshape.columns, (int(reshape.strided_rows), int(reshape.strided_columns))


def _shape(spec: ConvSpec) -> tuple[int, int]:
    return spec.kernel_shape[0], spec.kernel_shape[1]


def _matrices(weight: Tensor, spec: ConvSpec) -> Tensor:  # (groups, out / groups, in / groups)
    return spec.to_kernels(weight).reshape(spec.groups, *_shape(spec))
