"""Layers whose weight is a matrix that is read through a grid of its rows and one of its columns: which, and how."""

from __future__ import annotations

import reprlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from tdcompress.decompositions import Reshape
from tdcompress.decompositions.reshape import as_reshape
from tdcompress.decompositions.reshaped_options import Shapes
from tdcompress.errors import CompressionError
from tdcompress.layers.base import FactorizedConv
from tdcompress.layers.grid import as_axes, as_reshape_of, shape_of
from tdcompress.layers.spec import ConvSpec
from tdcompress.shapes import Axes


class GriddedConv(FactorizedConv):
    """A linear layer or a 1×1 convolution whose stages see their inputs through a grid.

    Between the stages stand modules that only rearrange (`Regroup`); the last of them adds the bias. The arrangement
    `axes` is the reshape: the factors of the rows, those of the columns, and whether either is strided, 0 or 1.
    """

    takes_linear = True
    cores: ClassVar[int] = 2  # of the balanced shape
    most_cores: ClassVar[int] = 2

    @staticmethod
    @abstractmethod
    def least_parameters(shape: tuple[int, int], options: Any) -> int | None:
        """Of all shapes that the options allow at rank one; None if there are none."""

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
        return [as_axes(cls.given(given, shape_of(spec)))]

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
        as_reshape(as_reshape_of(axes), shape_of(spec), cls.cores)

    @classmethod
    def modes_of(cls, spec: ConvSpec, axes: Axes) -> tuple[int, ...]:
        """(rows_1, columns_1, rows_2, columns_2, …)."""
        return tuple(size for pair in zip(axes[0], axes[1], strict=True) for size in pair)

    @classmethod
    def least(cls, spec: ConvSpec, options: Any) -> int:
        """Of the shapes that the options allow."""
        least = cls.least_parameters(shape_of(spec), options)
        if least is None:
            rows, columns = shape_of(spec)
            raise CompressionError(
                f"{cls.method} has no shape for a matrix of {rows} × {columns} but the one that is an SVD; use 'svd'."
            )
        return spec.groups * least

    @staticmethod
    def deterministic(options: Any) -> bool:
        """Always: nothing is drawn."""
        return True
