"""The grids of reshaped layers: arrangements as reshapes, and matrices and their columns as these read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tdcompress.decompositions import Reshape
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.whitening import divided
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


def over_columns(factor: Tensor, root: Tensor, axis: int) -> Tensor:
    """A factor with a root taken out along the axis of its columns."""
    moved = factor.double().movedim(axis, -1)
    return divided(moved.reshape(-1, moved.shape[-1]), root).reshape(moved.shape).movedim(-1, axis).to(factor.dtype)
