"""What makes a method: options, ranks and their cost, a solver, and stages; `FactorizedConv` makes a layer of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, cast

import torch
from torch import Tensor
from typing_extensions import TypeVar

from tdcompress.decompositions import Decomposition, Options, Solution, Solver
from tdcompress.errors import CompressionError
from tdcompress.layers.spec import ConvSpec
from tdcompress.shapes import Axes, Point, Rank

Factors = TypeVar("Factors", bound=Decomposition, default=Any)
MethodOptions = TypeVar("MethodOptions", bound=Options, default=Any)


class Method(ABC, Generic[Factors, MethodOptions]):
    """What a method fills in; everything that the rest of the package wants to know of it is asked here.

    The methods see one group's kernel with the shape `modes`: (out / groups, in / groups, *spatial), one spatial mode
    for every entry of `axes`.

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

    @staticmethod
    def takes_whole_patches(axes: Axes) -> bool:
        """Whether the first stage works along all axes and the method tells channels and positions apart nowhere."""
        return False

    @staticmethod
    def deterministic(options: MethodOptions) -> bool:
        """Whether the factors are the same for every seed; a method that does not say so is taken to draw them."""
        return False

    @staticmethod
    def quick(options: MethodOptions) -> MethodOptions:
        """What the solver is told for a layer that `plan` only tries, where it is slow otherwise."""
        return options

    # --- ranks ------------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """The largest feasible rank, at which the decomposition is exact."""

    @classmethod
    def nearest_feasible(cls, modes: Sequence[int], rank: Rank) -> Rank:
        """A rank that was taken from somewhere else, cut to what is feasible here."""
        return tuple(min(r, limit) for r, limit in zip(rank, cls.full_rank(modes), strict=True))

    @classmethod
    def tensorly_torch_rank(cls, kernel_shape: Sequence[int], ratio: float) -> Rank:
        """The rank that tensorly-torch, and so the paper, takes for a ratio; it need not be feasible.

        Args:
            kernel_shape: (out, in / groups, *kernel_size), spatial sizes of 1 included.
            ratio: the share of the parameters to remove. The rule rounds, and may miss it by far.

        Raises:
            CompressionError: tensorly-torch has no rule for this method.
        """
        raise CompressionError(f"tensorly-torch has no rank rule for method {cls.method!r}; give ratio alone, or rank.")

    @staticmethod
    @abstractmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """What `rank` costs one group in parameters."""

    @classmethod
    def smallest(cls, modes: Sequence[int]) -> int:
        """What rank 1 costs one group in parameters."""
        return cls.parameters_at(modes, tuple(1 for _ in cls.full_rank(modes)))

    @staticmethod
    @abstractmethod
    def choose_ranks(kernels: Tensor, budget: int, options: MethodOptions) -> Sequence[Rank]:
        """Ranks within `budget` parameters a group, the most promising first; none if none fits.

        Args:
            kernels: shape (groups, *modes).
            budget: parameters for one group.
            options: what the method is told.
        """

    @classmethod
    def curve(cls, kernels: Tensor, budgets: Sequence[int], options: MethodOptions) -> Sequence[Point]:
        """About what squared relative error the method has at each of many budgets, for planning.

        By default every rank is solved for; a method that can read the errors off one factorization should.

        Args:
            kernels: shape (groups, *modes).
            budgets: parameters for one group.
            options: what the method is told.

        Returns:
            Ranks with the share of the squared norm that is lost, none where a budget is too small.
        """
        ranks = {tuple(rank) for budget in budgets for rank in cls.choose_ranks(kernels, budget, options)[:1]}
        generator = torch.Generator()
        points = []
        for rank in sorted(ranks):
            _, solution = cls.solve_groups(kernels, rank, options, generator.manual_seed(0))
            points.append((rank, solution.relative_error**2))
        return points

    # --- factors and stages -----------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def solve(kernel: Tensor, rank: Rank, options: MethodOptions, generator: torch.Generator) -> Factors:
        """Decompose one group's kernel; the result has a `solution`."""

    @classmethod
    def solve_groups(
        cls, kernels: Tensor, rank: Rank, options: MethodOptions, generator: torch.Generator
    ) -> tuple[list[Factors], Solution]:
        """Decompose the kernels of all groups, (groups, *modes), and say how it went for all of them together."""
        factors = [cls.solve(kernel, rank, options, generator) for kernel in kernels]
        norms = [float(torch.linalg.vector_norm(kernel.double())) for kernel in kernels]
        return factors, Solution.of_groups([one.solution for one in factors], norms)

    @staticmethod
    @abstractmethod
    def stages(spec: ConvSpec, rank: Rank, axes: Axes) -> Mapping[str, ConvSpec]:
        """The convolutions of the stack by name, in order, each without bias.

        Every spatial axis belongs to exactly one of them, in the order of `axes`; `spec.stage` makes one.
        """

    @staticmethod
    @abstractmethod
    def stage_weights(decomposition: Factors) -> Sequence[Tensor]:
        """One group's share of every stage's weight, (stage out, stage in, *spatial); sizes of 1 may be left out."""
