"""What every factorized convolution promises, and the way from a dense one to it and back."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from tdcompress.decompositions import Solution
from tdcompress.decompositions.algebra import check_rank, check_tensor
from tdcompress.errors import CompressionError
from tdcompress.layers.spec import Convolution, ConvSpec, as_convolution
from tdcompress.ranks import Rank, parameter_budget, tensorly_torch_rank


class FactorizedConv(nn.Sequential, ABC):
    """A convolution as a stack of plain convolutions that do the same with fewer parameters.

    The stack is an ordinary `nn.Sequential`, so whatever PyTorch can do with convolutions it can do with
    this: compile, export, autocast, quantize, prune, copy, save. Only the last stage has a bias. At any rank the
    stack equals the dense convolution with the kernel `weight`, and at full rank the one it was made from.

    It keeps the attributes of the convolution that it stands for: `in_channels`, `out_channels`,
    `kernel_size`, `stride`, `padding`, `dilation`, `groups`, `padding_mode` and `bias`.

    A new method is a subclass that fills in the abstract methods. They see one group's kernel, shape
    (out / groups, in / groups, *spatial), with spatial sizes of 1 left out.

    Args:
        spec: the convolution to stand for.
        rank: the rank, with as many entries as the method has; one whole number for all of them.
        device: where the stages' parameters are made.
        dtype: their type.

    Attributes:
        spec: the convolution that the stack stands for.
        rank: the rank, a tuple.
        solution: how the factors were found; None for a layer that was built with fresh weights.
    """

    method: ClassVar[str]

    if TYPE_CHECKING:  # what nn.Sequential does not tell: every stage is a convolution

        def __iter__(self) -> Iterator[Convolution]: ...

    def __init__(
        self,
        spec: ConvSpec,
        rank: int | Sequence[int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        full = self.full_rank(spec.modes)
        rank = _as_tuple(rank, len(full))
        check_rank(rank, full, self.method)
        stages = self.stages(spec, rank)
        *_, last = stages  # only the last stage adds the bias
        stages = {**stages, last: stages[last].with_bias(spec.has_bias)}
        built = {name: stage.build(device=device, dtype=dtype) for name, stage in stages.items()}
        super().__init__(OrderedDict(built))
        self.spec = spec
        self.rank = rank
        self.solution: Solution | None = None
        self.in_channels, self.out_channels = spec.in_channels, spec.out_channels
        self.kernel_size, self.stride, self.padding = spec.kernel_size, spec.stride, spec.padding
        self.dilation, self.groups, self.padding_mode = spec.dilation, spec.groups, spec.padding_mode

    # --- what a method fills in -------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """The largest feasible rank, at which the decomposition is exact."""

    @classmethod
    def nearest_feasible(cls, modes: Sequence[int], rank: Rank) -> Rank:
        """A rank that was taken from somewhere else, cut to what is feasible here."""
        return tuple(min(r, limit) for r, limit in zip(rank, cls.full_rank(modes), strict=True))

    @staticmethod
    @abstractmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """What `rank` costs one group in parameters."""

    @staticmethod
    @abstractmethod
    def choose_rank(kernels: Tensor, budget: int) -> Rank:
        """The rank within `budget` parameters a group that loses least; zeros if there is none.

        Args:
            kernels: shape (groups, out / groups, in / groups, *spatial).
            budget: parameters for one group.
        """

    @staticmethod
    @abstractmethod
    def solve(kernel: Tensor, rank: Rank, solver: str | None, generator: torch.Generator) -> Any:
        """Decompose one group's kernel; the result has a `solution`."""

    @staticmethod
    @abstractmethod
    def stages(spec: ConvSpec, rank: Rank) -> Mapping[str, ConvSpec]:
        """The convolutions of the stack by name, in order, each without bias.

        Every spatial axis belongs to exactly one of them, in ascending order; `spec.stage` makes one.
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
        solver: str | None = None,
        seed: int | torch.Generator = 0,
    ) -> FactorizedConv:
        """Factorize a convolution; the one given is not touched.

        Args:
            conv: an `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`.
            ratio: the share of the weight's parameters to remove, in (0, 1). At most `1 − ratio` is kept,
                never more, and the budget is used up to the next rank step.
            rank: an exact rank instead of a ratio: a number for CP, (out, in) for Tucker, the inner ranks along
                (in, *spatial, out) for the tensor train; one number stands for all entries. Or
                `"tensorly-torch"`, with a ratio, for the rank that tensorly-torch and the paper would take.
            solver: None for tdcompress's own, `"tensorly"` for the paper's.
            seed: what random starts are drawn from, a number or a `torch.Generator`.

        Returns:
            The factorized layer with the convolution's dtype, device, training mode and requires_grad.

        Raises:
            CompressionError: what was given cannot be factorized as asked; the message says why.
        """
        conv = as_convolution(conv)
        spec, weight, bias = ConvSpec.of(conv), conv.weight, conv.bias
        check_tensor(weight)
        kernels = weight.detach().reshape(spec.groups, *spec.modes)
        rank = cls._resolve_rank(spec, kernels, ratio, rank)
        cls._warn_if_larger(spec, rank)
        generator = _generator(seed)
        found = [cls.solve(kernel, rank, solver, generator) for kernel in kernels]
        layer = cls(spec, rank, device="meta")  # on meta: no fresh weights, no global generator
        by_stage = zip(*(cls.stage_weights(one) for one in found), strict=True)
        for stage, parts in zip(layer, by_stage, strict=True):
            values = torch.cat([part.reshape(-1, *stage.weight.shape[1:]) for part in parts])
            stage.weight = nn.Parameter(values.contiguous(), requires_grad=weight.requires_grad)
        if bias is not None:
            layer[-1].bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        norms = [float(torch.linalg.vector_norm(kernel.double())) for kernel in kernels]
        layer.solution = Solution.of_groups([one.solution for one in found], norms)
        return layer.train(conv.training)

    @property
    def weight(self) -> Tensor:
        """The dense kernel that the stack stands for, (out, in / groups, *kernel_size); differentiable."""
        groups, kernel = self.groups, None
        for stage in self:
            part = stage.weight.flatten(2)
            if kernel is None:
                kernel = part.reshape(groups, -1, *part.shape[1:])  # (groups, channels, in, positions)
            elif stage.groups > groups:  # depthwise: every channel gets its own profile
                kernel = kernel[..., None] * part.reshape(groups, -1, 1, 1, part.shape[-1])
                kernel = kernel.flatten(3)
            else:
                part = part.reshape(groups, -1, *part.shape[1:])
                kernel = torch.einsum("gock,gcip->goipk", part, kernel).flatten(3)
        assert kernel is not None
        return kernel.reshape(self.out_channels, -1, *self.kernel_size)

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, which is the last stage's."""
        return self[-1].bias

    @property
    def ratio(self) -> float:
        """The share of the dense weight's parameters that was removed; negative if the layer grew."""
        return 1 - sum(stage.weight.numel() for stage in self) / self.spec.numel

    def to_conv(self) -> Convolution:
        """The dense convolution that does what this layer does, with its own copy of the weights."""
        weight = self.weight.detach()
        conv = self.spec.build(device="meta")
        conv.weight = nn.Parameter(weight.clone(), requires_grad=self[-1].weight.requires_grad)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
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

    # --- ranks ------------------------------------------------------------------------------------------

    @classmethod
    def _resolve_rank(
        cls, spec: ConvSpec, kernels: Tensor, ratio: float | None, rank: int | Sequence[int] | str | None
    ) -> Rank:
        if isinstance(rank, str):
            return cls._rank_by_rule(spec, ratio, rank)
        if (ratio is None) == (rank is None):
            found = "neither" if ratio is None else f"both ratio={ratio} and rank={rank}"
            raise CompressionError(f"give either a ratio or a rank, got {found}.")
        full = cls.full_rank(spec.modes)
        if rank is not None:
            rank = _as_tuple(rank, len(full))
            check_rank(rank, full, cls.method)
            return rank
        assert ratio is not None
        chosen = cls.choose_rank(kernels, parameter_budget(spec.numel, ratio) // spec.groups)
        if not all(chosen):
            smallest = spec.groups * cls.parameters_at(spec.modes, tuple(1 for _ in full))
            raise CompressionError(_unreachable(cls.method, ratio, smallest, spec.numel))
        return chosen

    @classmethod
    def _rank_by_rule(cls, spec: ConvSpec, ratio: float | None, name: str) -> Rank:
        if name != "tensorly-torch":
            raise CompressionError(f"unknown rank rule {name!r}; the only rule is 'tensorly-torch'.")
        if ratio is None:
            raise CompressionError("rank='tensorly-torch' is a rule and needs a ratio to work from.")
        wanted = tensorly_torch_rank(cls.method, spec.kernel_shape, ratio)
        return cls.nearest_feasible(spec.modes, wanted)

    @classmethod
    def _warn_if_larger(cls, spec: ConvSpec, rank: Rank) -> None:
        parameters = spec.groups * cls.parameters_at(spec.modes, rank)
        if parameters > spec.numel:
            shown = rank[0] if len(rank) == 1 else rank
            warnings.warn(
                f"{cls.method} rank {shown} makes the layer larger: {parameters} parameters instead of {spec.numel}.",
                stacklevel=3,
            )


def _generator(seed: int | torch.Generator) -> torch.Generator:
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, Integral):
        return torch.Generator().manual_seed(int(seed))
    raise CompressionError(f"seed must be a whole number or a torch.Generator, got {seed!r}.")


def _as_tuple(rank: int | Sequence[int], length: int) -> Rank:
    """One entry a rank, as plain ints where they are whole numbers; `check_rank` refuses the rest."""
    entries = tuple(rank) if isinstance(rank, Iterable) else (rank,) * length
    return tuple(int(r) if isinstance(r, Integral) and not isinstance(r, bool) else r for r in entries)


def _unreachable(method: str, ratio: float, smallest: int, numel: int) -> str:
    if smallest >= numel:
        return (
            f"{method} cannot make this layer smaller: rank 1 has {smallest} parameters, the dense weight "
            f"{numel}. Leave it dense or use another method."
        )
    nearest = math.floor(1e4 * (1 - smallest / numel)) / 1e4
    return (
        f"{method} cannot reach ratio={ratio}: rank 1, the smallest, keeps {smallest} of {numel} parameters. "
        f"The largest ratio that can be reached is {nearest:.4f}."
    )
