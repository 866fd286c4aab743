"""What every factorized convolution promises, and the way from a dense one to it and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from tdcompress.decompositions import Solution, Solver
from tdcompress.decompositions.algebra import check_rank, check_tensor, relative_error
from tdcompress.errors import CompressionError, warn
from tdcompress.layers.exchange import Exchange
from tdcompress.layers.kinds import Convolution, bias_of, kind_of, weight_of
from tdcompress.layers.moments import InputMoments, Whitening, takes_over_mean, whitening_of
from tdcompress.layers.parameters import parameter
from tdcompress.layers.request import arrangements_to_try, as_rank, check_asked, check_reachable, ranks_to_try
from tdcompress.layers.spec import ConvSpec
from tdcompress.shapes import Axes, Point, Rank


class FactorizedConv(Exchange, ABC):
    """A convolution as a stack of plain convolutions that do the same with fewer parameters.

    The stack is an ordinary `nn.Sequential`, so whatever PyTorch can do with convolutions it can do with
    this: compile, export, autocast, quantize, prune, copy, save. Only the last stage has a bias. At any rank
    the stack equals the dense convolution with the kernel `weight`, and at full rank the one it was made from.

    A transposed convolution becomes a stack with transposed stages, and a linear layer, where the method takes
    them, one of linear layers; an embedding becomes a narrower one and a linear layer.

    It keeps the attributes of the layer that it stands for, `in_features` and `padding_idx` for example, and has
    `in_channels`, `out_channels`, `kernel_size`, `stride`, `padding`, `dilation`, `groups`, `padding_mode`,
    `transposed`, `output_padding` and `bias` whatever that is.

    A new method is a subclass that fills in the abstract methods. They see one group's kernel with the shape
    `modes`: (out / groups, in / groups, *spatial), one spatial mode for every entry of `axes`.

    Args:
        spec: the convolution to stand for.
        rank: the rank, with as many entries as the method has; one whole number for all of them.
        axes: which spatial axes the stages in the middle work along, in their order; the method's own
            arrangement by default.
        device: where the stages' parameters are made.
        dtype: their type.

    Attributes:
        spec: the convolution that the stack stands for.
        ranks: the rank, always a tuple.
        axes: the arrangement of the spatial axes.
        solution: how the factors were found; None for a layer that was built with fresh weights.
        ratio_asked: the ratio that was asked for; None if it was a rank. `ratio` is what was reached.
    """

    method: ClassVar[str]
    quick: ClassVar[Solver] = None  # for a layer that is only tried, see `plan`
    takes_linear: ClassVar[bool] = False  # whether a matrix, as `nn.Linear` and embeddings have, is worth this method

    if TYPE_CHECKING:  # what nn.Sequential does not tell: every stage is a convolution

        def __iter__(self) -> Iterator[Convolution]: ...

    def __init__(
        self,
        spec: ConvSpec,
        rank: int | Sequence[int],
        axes: Axes | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        axes = self.arrangements(spec.long_axes, None)[0] if axes is None else axes
        full = self.full_rank(spec.modes(axes))
        rank = as_rank(rank, len(full))
        check_rank(rank, full, self.method)
        stages = self._planned(spec, rank, axes)
        *_, last = stages  # only the last stage adds the bias
        stages = {**stages, last: stages[last].with_bias(spec.has_bias)}
        built = {name: stage.build(device=device, dtype=dtype) for name, stage in stages.items()}
        super().__init__(OrderedDict(built))
        self.spec, self.ranks, self.axes = spec, rank, axes
        self.solution: Solution | None = None
        self.ratio_asked: float | None = None
        self.in_channels, self.out_channels = spec.in_channels, spec.out_channels
        self.kernel_size, self.stride, self.padding = spec.kernel_size, spec.stride, spec.padding
        self.dilation, self.groups, self.padding_mode = spec.dilation, spec.groups, spec.padding_mode
        self.transposed, self.output_padding = spec.transposed, spec.output_padding
        for name, value in vars(spec.build(device="meta")).items():
            if not name.startswith("_") and not hasattr(self, name):
                setattr(self, name, value)

    # --- what a method fills in -------------------------------------------------------------------------

    @staticmethod
    def arrangements(long_axes: tuple[int, ...], solver: Solver) -> list[Axes]:
        """The arrangements of the spatial axes to try, the default first; of several, the best is taken.

        Args:
            long_axes: the spatial axes along which the kernel is larger than 1.
            solver: what the method's options may say about it.
        """
        return [tuple((axis,) for axis in long_axes)]

    @staticmethod
    def takes_whole_patches(axes: Axes) -> bool:
        """Whether the first stage works along all axes and the method tells channels and positions apart nowhere."""
        return False

    @staticmethod
    @abstractmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """The largest feasible rank, at which the decomposition is exact."""

    @staticmethod
    def deterministic(solver: Solver) -> bool:
        """Whether the factors are the same for every seed; a method that does not say so is taken to draw them."""
        return False

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

    @staticmethod
    @abstractmethod
    def choose_ranks(kernels: Tensor, budget: int, solver: Solver) -> Sequence[Rank]:
        """Ranks within `budget` parameters a group, the most promising first; none if none fits.

        Args:
            kernels: shape (groups, *modes).
            budget: parameters for one group.
            solver: what the method's options may say about it.
        """

    @classmethod
    def curve(cls, kernels: Tensor, budgets: Sequence[int]) -> Sequence[Point]:
        """About what squared relative error the method has at each of many budgets, for planning.

        By default every rank is solved for; a method that can read the errors off one factorization should.

        Args:
            kernels: shape (groups, *modes).
            budgets: parameters for one group.

        Returns:
            Ranks with the share of the squared norm that is lost, none where a budget is too small.
        """
        ranks = {tuple(rank) for budget in budgets for rank in cls.choose_ranks(kernels, budget, None)[:1]}
        return [(rank, cls._lost(kernels, rank, None)) for rank in sorted(ranks)]

    @classmethod
    def _lost(cls, kernels: Tensor, rank: Rank, solver: Solver) -> float:
        """The share of the squared norm that a solution loses."""
        found = [cls.solve(kernel, rank, solver, _generator(0)) for kernel in kernels]
        return _solution(found, kernels).relative_error ** 2

    @staticmethod
    @abstractmethod
    def solve(kernel: Tensor, rank: Rank, solver: Solver, generator: torch.Generator) -> Any:
        """Decompose one group's kernel; the result has a `solution`."""

    @staticmethod
    @abstractmethod
    def stages(spec: ConvSpec, rank: Rank, axes: Axes) -> Mapping[str, ConvSpec]:
        """The convolutions of the stack by name, in order, each without bias.

        Every spatial axis belongs to exactly one of them, in the order of `axes`; `spec.stage` makes one.
        """

    @staticmethod
    @abstractmethod
    def stage_weights(decomposition: Any) -> Sequence[Tensor]:
        """One group's share of every stage's weight, (stage out, stage in, *spatial); sizes of 1 may be left out."""

    # --- from a dense convolution and back --------------------------------------------------------------

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        *,
        ratio: float | None = None,
        rank: int | Sequence[int] | str | None = None,
        solver: Solver = None,
        seed: int | torch.Generator = 0,
        axes: Axes | None = None,
        whiten: InputMoments | None = None,
    ) -> FactorizedConv:
        """Factorize a convolution; the one given is not touched.

        Args:
            conv: an `nn.Conv1d` to `nn.Conv3d`, an `nn.ConvTranspose1d` to `nn.ConvTranspose3d`, or, for methods
                that take a matrix, an `nn.Linear`, an `nn.Embedding` or a `Conv1D` of `transformers`; or a layer of a
                registered kind.
            ratio: the share of the weight's parameters to remove, in (0, 1). At most `1 − ratio` is kept,
                never more, and the budget is used up to the next rank step.
            rank: an exact rank instead of a ratio: a number for CP and SVD, (out, in) for Tucker, the inner ranks
                along (in, *spatial, out) for the tensor train, in the given order of the axes; one number stands for
                all entries. Or `"tensorly-torch"`, with a ratio, for the rank that tensorly-torch and the paper would
                take.
            solver: None for the method's defaults, its options (`CPOptions`, `TuckerOptions`, `TTOptions`,
                `SVDOptions`), or `"tensorly"` for the paper's own.
            seed: what random starts are drawn from, a number or a `torch.Generator`.
            axes: the only arrangement of the spatial axes to consider, as in the attribute `axes`; by default all that
                the method and its options have are tried for a ratio, and a rank is meant for the first.
            whiten: moments of this layer's inputs. The features, not the weights, are then approximated best, as far as
                the second moment is one of channels times one of kernel positions; the bias takes over the mean of
                what is lost. See `input_moments`.

        Returns:
            The factorized layer with the convolution's dtype, device, memory format, training mode and requires_grad.

        Raises:
            CompressionError: what was given cannot be factorized as asked; the message says why.
        """
        layer = cls.factorized(conv, ratio, rank, solver, seed, axes, whiten)
        if layer.growth:
            warn(layer.growth)
        return layer

    @classmethod
    def factorized(
        cls,
        conv: nn.Module,
        ratio: float | None,
        rank: int | Sequence[int] | str | None,
        solver: Solver,
        seed: int | torch.Generator,
        axes: Axes | None,
        whiten: InputMoments | Whitening | None,
    ) -> FactorizedConv:
        """What `from_conv` gives, without its warning, which must not be lost on another process."""
        spec, weight, bias = ConvSpec.of(conv), weight_of(conv), bias_of(conv)
        check_asked(ratio, rank)
        check_reachable(cls, spec, None if isinstance(rank, str) else ratio, solver)
        check_tensor(weight)
        generator = _generator(seed)
        whitening = None if whiten is None else whitening_of(whiten, spec)
        asked = (arrangements_to_try(cls, spec, axes, solver), ratio, rank, solver, generator)
        axes, rank, found, solution = cls._best(spec, weight.detach(), whitening, *asked)
        layer = cls(spec, rank, axes, device="meta")  # on meta: no fresh weights, no global generator
        by_stage = zip(*(cls.stage_weights(one) for one in found), strict=True)
        for stage, part, parts in zip(layer, layer.stage_specs, by_stage, strict=True):
            kernels = torch.cat([values.flatten() for values in parts]).view(part.groups, *part.kernel_shape)
            if whitening is not None:
                kernels = whitening.undone(kernels, part, axes, stage is layer[0], cls.takes_whole_patches(axes))
            stage.weight = parameter(part.to_weight(kernels).to(weight.dtype), like=weight)
        if bias is not None:
            layer[-1].bias = parameter(bias.detach().clone(), like=bias)
        layer.solution, layer.ratio_asked = solution, None if ratio is None else float(ratio)
        if whitening is not None:
            layer.solution = _settled(layer, conv, whitening)
        return layer.train(conv.training)

    @classmethod
    def _best(
        cls,
        spec: ConvSpec,
        weight: Tensor,
        whitening: Whitening | None,
        arrangements: Sequence[Axes],
        ratio: float | None,
        rank: int | Sequence[int] | str | None,
        solver: Solver,
        generator: torch.Generator,
    ) -> tuple[Axes, Rank, list[Any], Solution]:
        """The arrangement and rank that lose least of those to try, the groups' decompositions, and their sum."""
        tried = []
        # A rank that was given is meant for the method's own arrangement.
        for axes in arrangements if rank is None else arrangements[:1]:
            kernels = arranged(weight, spec, axes)
            if whitening is not None:
                kernels = whitening.of_kernels(kernels, axes, cls.takes_whole_patches(axes))
                kernels = kernels.to(torch.promote_types(weight.dtype, torch.float32))
            for candidate in ranks_to_try(cls, spec, kernels, ratio, rank, solver):
                found = [cls.solve(kernel, candidate, solver, generator) for kernel in kernels]
                tried.append((axes, candidate, found, _solution(found, kernels)))
        if not tried:  # the smallest rank would fit, but the method offers none
            raise CompressionError(f"{cls.method} proposes no rank for ratio={ratio}; ask for a lower one, or a rank.")
        return min(tried, key=lambda one: one[-1].relative_error)

    @classmethod
    def _planned(cls, spec: ConvSpec, rank: Rank, axes: Axes) -> dict[str, ConvSpec]:
        """The stages by name, the first one of the layer's own kind if only that takes what the layer takes."""
        stages = dict(cls.stages(spec, rank, axes))
        if not spec.adapter.reads_features:
            first = next(iter(stages))
            stages[first] = replace(stages[first], kind=spec.kind, options=spec.options)
        return stages

    @property
    def stage_specs(self) -> tuple[ConvSpec, ...]:
        """The arguments of every stage, in order, bias aside."""
        planned = self._planned(self.spec, self.ranks, self.axes).values()
        # A stage that shares its weight with that of another layer may have it lie the other way round.
        kinds = [kind_of(stage) for stage in self]
        return tuple(
            part if kind is None else replace(part, kind=kind.name) for part, kind in zip(planned, kinds, strict=True)
        )

    @property
    def weight(self) -> Tensor:
        """The dense weight that the stack stands for, with the shape of the original's; differentiable."""
        groups, spec = self.groups, self.spec
        inputs = spec.in_channels // groups
        kernel: Tensor | None = None
        for stage, part in zip(self, self.stage_specs, strict=True):
            # A stage with more groups than the convolution, depthwise at the most, keeps blocks of channels apart.
            kernels = part.to_kernels(stage.weight)
            kernels = kernels.reshape(groups, -1, *kernels.shape[1:3], math.prod(part.kernel_size))
            blocks = kernels.shape[1]
            if kernel is None:
                if blocks == 1:
                    kernel = kernels[:, 0]
                    continue
                kernel = torch.eye(inputs, dtype=kernels.dtype, device=kernels.device)[..., None]
                kernel = kernel.expand(groups, inputs, inputs, 1)
            kernel = kernel.reshape(groups, blocks, -1, *kernel.shape[2:])  # (groups, blocks, channels, in, positions)
            kernel = torch.einsum("gbock,gbcip->gboipk", kernels, kernel).flatten(1, 2).flatten(3)
        assert kernel is not None
        order = [axis for group in self.axes for axis in group] + list(spec.short_axes)
        kernel = kernel.reshape(*kernel.shape[:3], *(spec.kernel_size[axis] for axis in order))
        back = [order.index(axis) for axis in range(len(order))]
        return spec.to_weight(kernel.permute(0, 1, 2, *(3 + place for place in back)))

    @property
    def rank(self) -> int | Rank:
        """The rank as the method writes it: a number for CP and SVD, a tuple for the others."""
        return self.ranks

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, which is the last stage's."""
        bias: nn.Parameter | None = self[-1].bias
        return bias

    @property
    def ratio(self) -> float:
        """The share of the dense weight's parameters that was removed; negative if the layer grew."""
        # One division, so that 0.1 is 0.1 where a tenth was removed.
        return (self.spec.numel - sum(stage.weight.numel() for stage in self)) / self.spec.numel

    @property
    def growth(self) -> str | None:
        """A sentence to warn by, if the layer has more parameters than the dense one."""
        if self.ratio >= 0:
            return None
        parameters = round((1 - self.ratio) * self.spec.numel)
        rank = self.ranks[0] if len(self.ranks) == 1 else self.ranks
        return (
            f"{self.method} rank {rank} makes the layer larger: {parameters} parameters instead of {self.spec.numel}."
        )

    def to_conv(self) -> Any:
        """The dense layer, of the original's kind, that does what this layer does, with its own copy of the weights."""
        conv, kind = self.spec.build(device="meta"), self.spec.adapter
        setattr(conv, kind.weight, parameter(self.weight.detach(), like=self[-1].weight))
        if self.bias is not None:
            setattr(conv, kind.bias, parameter(self.bias.detach().clone(), like=self.bias))
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """The convolution, the rank, and what the decomposition reached."""
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}, "
        shown += f"ratio={self.ratio:.4f}"
        return shown if self.solution is None else f"{shown}, relative_error={self.solution.relative_error:.4f}"

    def __getitem__(self, index: slice | int) -> Any:
        """A stage, or for a slice a plain `nn.Sequential` of stages: part of a stack is no such layer."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


def arranged(weight: Tensor, spec: ConvSpec, axes: Axes) -> Tensor:
    """A dense weight as (groups, *modes): its groups apart, its spatial axes in the order of `axes`."""
    order = [axis for group in axes for axis in group] + list(spec.short_axes)
    kernels = spec.to_kernels(weight).permute(0, 1, 2, *(3 + axis for axis in order))
    return kernels.reshape(spec.groups, *spec.modes(axes))


def _solution(found: Sequence[Any], kernels: Tensor) -> Solution:
    norms = [float(torch.linalg.vector_norm(kernel.double())) for kernel in kernels]
    return Solution.of_groups([one.solution for one in found], norms)


def _settled(layer: FactorizedConv, conv: nn.Module, whitening: Whitening) -> Solution | None:
    """Let the bias make up for the mean that was lost, and say how far the weight itself is from the dense one."""
    with torch.no_grad():
        dense, weight = weight_of(conv), layer.weight
        if layer.bias is not None and takes_over_mean(layer.spec):
            layer.bias.add_(whitening.lost_mean(dense.double() - weight.double(), layer.spec).to(layer.bias))
        error = relative_error(dense, weight)
    return None if layer.solution is None else replace(layer.solution, relative_error=error)


def _generator(seed: int | torch.Generator) -> torch.Generator:
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, Integral):
        return torch.Generator().manual_seed(int(seed))
    raise CompressionError(f"seed must be a whole number or a torch.Generator, got {seed!r}.")
