"""Which layers a method is for, and in what arrangements of their axes it takes them."""

from __future__ import annotations

import reprlib
from abc import ABC
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, cast

from typing_extensions import TypeVar

from tdcompress.decompositions import Options, Solver
from tdcompress.errors import CompressionError
from tdcompress.layers.spec import ConvSpec
from tdcompress.shapes import Axes

MethodOptions = TypeVar("MethodOptions", bound=Options, default=Any)


class Arranging(ABC, Generic[MethodOptions]):
    """What is asked of a method before it sees a weight.

    Attributes:
        method: its name; `register_method` gives it.
        options: the class of what its solver may be told; an instance without arguments are the defaults.
        takes_linear: whether a matrix, as `nn.Linear` and embeddings have, is worth this method.
        planned_by_default: whether `plan`, told nothing, tries it.
    """

    method: ClassVar[str]
    options: ClassVar[type[Options]] = Options
    takes_linear: ClassVar[bool] = False
    planned_by_default: ClassVar[bool] = False

    @classmethod
    def takes(cls, spec: ConvSpec) -> bool:
        """Whether a layer is for this method: by default every one with spatial axes, and others if `takes_linear`."""
        return cls.takes_linear or not spec.is_matrix

    @classmethod
    def refusal(cls, spec: ConvSpec) -> str | None:
        """Why a layer is not for this method, where there is more to say than that it is a matrix, or none."""
        return None

    @classmethod
    def options_from(cls, solver: Solver) -> MethodOptions:
        """The options that a user means by `solver=`, see `Options.of`."""
        return cast(MethodOptions, cls.options.of(solver))

    # --- what it may be told ----------------------------------------------------------------------------

    @staticmethod
    def arrangements(kernel_axes: tuple[int, ...], options: MethodOptions) -> list[Axes]:
        """The arrangements of the spatial axes to try, the default first; of several, the best is taken.

        Args:
            kernel_axes: the spatial axes along which the kernel is larger than 1.
            options: what the method is told.
        """
        return [tuple((axis,) for axis in kernel_axes)]

    @classmethod
    def ways(cls, spec: ConvSpec, options: MethodOptions) -> Sequence[Axes]:
        """The `arrangements` of this layer, the default first."""
        return cls.arrangements(spec.kernel_axes, options)

    @classmethod
    def ways_to_try(cls, spec: ConvSpec, axes: Axes | None, options: MethodOptions) -> Sequence[Axes]:
        """The one that was given, or all; none if they depend on the values of the weight, see `proposals`.

        Raises:
            CompressionError: the method does not have the one that was given.
        """
        known = cls.ways(spec, options)
        if axes is None:
            return known
        axes = tuple(tuple(group) for group in axes)
        if axes not in known:
            raise CompressionError(f"{cls.method} has no arrangement {axes} here; there are {known}.")
        return [axes]

    @classmethod
    def check_axes(cls, spec: ConvSpec, axes: Axes) -> None:
        """Refuse what cannot be the arrangement of such a layer, whatever the options were.

        Raises:
            CompressionError: it cannot.
        """
        if sorted(axis for group in axes for axis in group) != list(spec.kernel_axes):
            raise CompressionError(f"axes {reprlib.repr(axes)} do not have each of {spec.kernel_axes} once.")

    @classmethod
    def modes_of(cls, spec: ConvSpec, axes: Axes) -> tuple[int, ...]:
        """The shape in which the method sees one group's kernel."""
        return spec.modes(axes)

    @staticmethod
    def takes_whole_patches(axes: Axes) -> bool:
        """Whether the first stage works along all axes and the method tells channels and positions apart nowhere."""
        return False
