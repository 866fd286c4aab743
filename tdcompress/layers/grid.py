"""The grids of reshaped layers: arrangements as reshapes, and second moments along the axes of the columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tdcompress.decompositions import Reshape
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.whitening import divided, moment_root
from tdcompress.shapes import Axes


def as_reshape_of(axes: Axes) -> Reshape:
    """The reshape that an arrangement is."""
    rows, columns, (strided_rows, strided_columns) = axes
    return Reshape(tuple(rows), tuple(columns), bool(strided_rows), bool(strided_columns))


def as_axes(reshape: Reshape) -> Axes:
    """The arrangement that a reshape is."""
    return reshape.rows, reshape.columns, (int(reshape.strided_rows), int(reshape.strided_columns))


def reshape_of(modes: Sequence[int]) -> Reshape:
    """The reshape, nothing of it strided, with these modes."""
    return Reshape(tuple(modes[0::2]), tuple(modes[1::2]))


def shape_of(spec: ConvSpec) -> tuple[int, int]:
    """Rows and columns of the matrix of a group."""
    return spec.kernel_shape[0], spec.kernel_shape[1]


def matrices_of(weight: Tensor, spec: ConvSpec) -> Tensor:
    """The groups' matrices, (groups, out / groups, in / groups)."""
    return spec.to_kernels(weight).reshape(spec.groups, *shape_of(spec))


def columns_of(reshape: Reshape, device: torch.device | None = None) -> Tensor:
    """The columns of a matrix in the order of the grid."""
    numbers = torch.arange(reshape.shape[1], device=device)[None]
    alone = Reshape((1,) * reshape.cores, reshape.columns, False, reshape.strided_columns)
    return alone.to_tensor(numbers).flatten()


def roots_along(moment: Tensor, reshape: Reshape) -> list[Tensor]:
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


def times_roots(kernel: Tensor, roots: Sequence[Tensor]) -> Tensor:
    """One group's kernel, (rows_1, columns_1, …), times every root along its column axis."""
    for core, root in enumerate(roots):
        kernel = torch.tensordot(kernel, root.to(kernel), dims=([2 * core + 1], [0])).movedim(-1, 2 * core + 1)
    return kernel


def over_columns(factor: Tensor, root: Tensor, axis: int) -> Tensor:
    """A factor with a root taken out along the axis of its columns."""
    moved = factor.double().movedim(axis, -1)
    return divided(moved.reshape(-1, moved.shape[-1]), root).reshape(moved.shape).movedim(-1, axis).to(factor.dtype)
