"""What makes a method: ranks and their cost, a solver, and stages; `FactorizedConv` makes a layer of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic

import torch
from torch import Tensor
from typing_extensions import TypeVar

from tdcompress.decompositions import Decomposition, Solution
from tdcompress.errors import CompressionError
from tdcompress.layers.arranging import Arranging, MethodOptions
from tdcompress.layers.reshapes import Regrouping
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.whitening import Whitening
from tdcompress.shapes import Axes, Point, Rank

Factors = TypeVar("Factors", bound=Decomposition, default=Any)


class Method(Arranging[MethodOptions], Generic[Factors, MethodOptions]):
    """What a method fills in; everything that the rest of the package wants to know of it is asked here.

    The methods see one group's kernel with the shape `modes`: (out / groups, in / groups, *spatial), one spatial mode
    for every entry of `axes`.
    """

    # --- what the solver is told ------------------------------------------------------------------------

    @staticmethod
    def deterministic(options: MethodOptions) -> bool:
        """Whether the factors are the same for every seed; a method that does not say so is taken to draw them."""
        return False

    @staticmethod
    def quick(options: MethodOptions) -> MethodOptions:
        """What the solver is told for a layer that `plan` only tries, where it is slow otherwise."""
        return options

    @staticmethod
    def trial(options: MethodOptions) -> MethodOptions | None:
        """What the solver is told to see which of several arrangements and ranks are worth solving for; None: all are.

        After the trial those are solved for that are near the best.
        """
        return None

    # --- ranks ------------------------------------------------------------------------------------------

    @classmethod
    def proposals(
        cls, spec: ConvSpec, weight: Tensor, whitening: Whitening | None, budget: int, options: MethodOptions
    ) -> Sequence[tuple[Axes, Rank]]:
        """The arrangements and ranks to try where they depend on the values of the weight.

        Args:
            spec: the layer.
            weight: of the layer.
            whitening: by its inputs; None for the weight as it is.
            budget: parameters for one group.
            options: what the method is told.
        """
        return []

    @classmethod
    def least(cls, spec: ConvSpec, options: MethodOptions) -> int:
        """The parameters of rank 1, all groups together, in the smallest of the layer's arrangements.

        Raises:
            CompressionError: the method has no way to read a layer of these sizes.
        """
        return spec.groups * min(cls.smallest(cls.modes_of(spec, axes)) for axes in cls.ways(spec, options))

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

    @classmethod
    def points(
        cls,
        spec: ConvSpec,
        weight: Tensor,
        whitening: Whitening | None,
        budgets: Callable[[int], Sequence[int]],
        options: MethodOptions,
    ) -> Iterator[tuple[Axes, Rank, float]]:
        """The `curve` of every arrangement.

        Args:
            spec: the layer.
            weight: of the layer.
            whitening: by its inputs; None for the error of the weight.
            budgets: from the parameters of one group at rank 1 to the budgets.
            options: what the method is told.

        Yields:
            Arrangement, rank, and the share of the squared norm that is lost.
        """
        for axes in cls.ways(spec, options):
            kernels = cls.seen(weight.to(torch.promote_types(weight.dtype, torch.float32)), spec, axes, whitening)
            for rank, lost in cls.curve(kernels, budgets(cls.smallest(cls.modes_of(spec, axes))), options):
                yield axes, rank, lost

    # --- factors and stages -----------------------------------------------------------------------------

    @classmethod
    def seen(cls, weight: Tensor, spec: ConvSpec, axes: Axes, whitening: Whitening | None) -> Tensor:
        """The groups' kernels as they are solved for, (groups, *modes)."""
        kernels = spec.arranged(weight, axes)
        if whitening is None:
            return kernels
        kernels = whitening.along(axes, cls.takes_whole_patches(axes)).applied(kernels)
        return kernels.to(torch.promote_types(weight.dtype, torch.float32))

    @classmethod
    def stage_kernels(
        cls, decompositions: Sequence[Factors], parts: Sequence[ConvSpec], axes: Axes, whitening: Whitening | None
    ) -> Iterator[Tensor]:
        """The kernels of every stage with a weight, (groups of the stage, *kernel_shape), whitening undone.

        Args:
            decompositions: the groups', in order.
            parts: the stages.
            axes: the arrangement.
            whitening: what `seen` was given.
        """
        by_stage = zip(*(cls.stage_weights(one) for one in decompositions), strict=True)
        for place, (part, values) in enumerate(zip(parts, by_stage, strict=True)):
            kernels = torch.cat([one.flatten() for one in values]).view(part.groups, *part.kernel_shape)
            if whitening is not None:
                along = whitening.along(axes, cls.takes_whole_patches(axes))
                kernels = along.removed(kernels, part, first=place == 0, last=place == len(parts) - 1)
            yield kernels

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

    @classmethod
    def compared_by(
        cls,
        decompositions: Sequence[Factors],
        solution: Solution,
        weight: Tensor,
        spec: ConvSpec,
        axes: Axes,
        whitening: Whitening | None,
    ) -> float:
        """The relative error by which an arrangement is compared with others: by default that of what was solved for.

        Args:
            decompositions: the groups', of what `seen` gave.
            solution: of all of them together.
            weight: of the layer.
            spec: the layer.
            axes: the arrangement.
            whitening: what `seen` was given.
        """
        return solution.relative_error

    @staticmethod
    @abstractmethod
    def stages(spec: ConvSpec, rank: Rank, axes: Axes) -> Mapping[str, ConvSpec | Regrouping]:
        """The convolutions of the stack by name, in order, each without bias, and what rearranges between them.

        Every spatial axis belongs to exactly one of them, in the order of `axes`; `spec.stage` makes one.
        """

    @staticmethod
    @abstractmethod
    def stage_weights(decomposition: Factors) -> Sequence[Tensor]:
        """One group's share of every stage's weight, (stage out, stage in, *spatial); sizes of 1 may be left out."""
