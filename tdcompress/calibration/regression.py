"""Least squares of a layer's outputs on its inputs, from normal equations that stream."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tdcompress.decompositions.algebra import add_self_product
from tdcompress.layers import ConvSpec, FactorizedConv
from tdcompress.layers.moments import check_finite
from tdcompress.layers.patches import patches
from tdcompress.shapes import Axes

_POSITIONS = (64, 256)  # of one output at the most, fewer for fewer unknowns: neighbours see nearly the same,
_UNKNOWNS = 8  # unknowns for every position
_RIDGE = 1e-3  # of the mean diagonal, towards the weight that is there
_TINY = 1e-30  # a ridge where nothing was seen at all
_ITERATIONS = 60
_WIDE = 2048  # columns above which the normal equations are summed in float32
_LARGEST = 4608  # columns of normal equations that are still solved, those of a 3×3 kernel over 512 channels
_PRODUCTS = 1 << 31  # multiplications of one quasi-Newton step at the most


@dataclass(frozen=True)
class Goal:
    """What is kept of an output that a layer should have.

    Attributes:
        values: of a regression, (samples, groups, out / groups, positions).
        positions: which of them they are; None for all.
        elements: of the whole output.
    """

    values: Tensor
    positions: Tensor | None
    elements: int

    @property
    def nbytes(self) -> int:
        """What the values take."""
        return self.values.nbytes


class Regression:
    """Means and covariances of what a convolution sees and what it should say.

    Like `InputMoments`, it sums what remains when the means of the first batch are subtracted.

    Args:
        spec: the convolution.
        centred: whether the means are taken out, for a bias or a BatchNorm to make up for.
    """

    def __init__(self, spec: ConvSpec, *, centred: bool) -> None:
        self.spec, self.centred, self.count = spec, centred, 0
        self._generator = torch.Generator().manual_seed(0)
        self._shifts: tuple[Tensor, Tensor] | None = None  # near the means of the patches and of the target
        self._inner: Tensor
        self._cross: Tensor
        self._sums: Tensor

    @property
    def nbytes(self) -> int:
        """What the equations take, from the first update on."""
        size = columns(self.spec)
        return self._dtype.itemsize * self.spec.groups * size * (size + self.spec.kernel_shape[0])

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if columns(self.spec) > _WIDE else torch.float64

    def goal(self, target: Tensor) -> Goal:
        """What is kept of an output that the convolution should have: some positions of every sample."""
        spec = self.spec
        if not spec.kernel_size:
            target = target.reshape(-1, spec.out_channels)
        elif target.ndim == len(spec.kernel_size) + 1:
            target = target[None]
        outputs, sizes = spec.out_channels // spec.groups, target.shape[2:]
        values = target.detach().reshape(len(target), spec.groups, outputs, math.prod(sizes))
        few, many = _POSITIONS
        most = min(max(few, columns(spec) // _UNKNOWNS), many)
        if values.shape[3] <= most:
            return Goal(values.clone(), None, target.numel())
        some = torch.randperm(values.shape[3], generator=self._generator, device="cpu")[:most].to(values.device)
        return Goal(values[..., some], some, target.numel())

    def update(self, inputs: Tensor, goal: Goal) -> None:
        """Take in what the convolution is called with, and what its output should be."""
        start = 0
        for patch in patches(inputs, self.spec, goal.positions):
            self._add(patch, goal.values[start : start + len(patch)].to(patch))
            start += len(patch)

    def _add(self, patch: Tensor, goal: Tensor) -> None:
        """One of the `patches`, and the target at its positions, (samples, groups, out, positions)."""
        rows = patch.permute(1, 2, 4, 0, 3).flatten(3).flatten(1, 2)  # (groups, in · kernel, samples · positions)
        goals = goal.permute(1, 2, 0, 3).flatten(2)
        if self._shifts is None:
            self._shifts = rows.double().mean(2, keepdim=True), goals.double().mean(2, keepdim=True)
            check_finite(*self._shifts)
            self._begin(rows.shape[1], goals.shape[1])
        rows, goals = rows - self._shifts[0].to(rows), goals - self._shifts[1].to(goals)
        self._inner = add_self_product(self._inner.to(rows.device), rows)
        self._cross = self._cross.to(rows.device).add_(goals @ rows.mT)
        sums = [one.sum(2, dtype=torch.float64) for one in (rows, goals)]
        self._sums = self._sums.to(rows.device).add_(torch.cat(sums, 1))
        self.count += rows.shape[-1]

    def _begin(self, size: int, out: int) -> None:  # not before: layers wait for their turn with nothing but goals
        groups = self.spec.groups
        self._inner = torch.zeros(groups, size, size, dtype=self._dtype, device="cpu")
        self._cross = torch.zeros(groups, out, size, dtype=self._dtype, device="cpu")
        self._sums = torch.zeros(groups, size + out, dtype=torch.float64, device="cpu")

    def means(self) -> tuple[Tensor, Tensor]:
        """Of the patches, (groups, in · kernel), and of the target, (groups, out)."""
        (rows, goals), (row_shift, goal_shift) = self._shifted_means()
        return rows + row_shift, goals + goal_shift

    def _shifted_means(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        assert self._shifts is not None
        size = self._inner.shape[2]
        mean = self._sums / self.count
        return (mean[:, :size], mean[:, size:]), (self._shifts[0].squeeze(2), self._shifts[1].squeeze(2))

    def covariances(self, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Of the patches with themselves and of the target with them, with a ridge towards `prior`.

        Args:
            prior: the kernels to keep to where the data says nothing, (groups, out, in · kernel).

        Raises:
            CompressionError: what was seen is not finite.
        """
        check_finite(self._sums, self._cross)
        (rows, goals), _ = self._shifted_means()
        inner, cross = self._inner / self.count, self._cross / self.count
        inner -= (rows[:, :, None] * rows[:, None]).to(inner)
        cross -= (goals[:, :, None] * rows[:, None]).to(cross)
        if not self.centred:
            rows, goals = self.means()
            inner += (rows[:, :, None] * rows[:, None]).to(inner)
            cross += (goals[:, :, None] * rows[:, None]).to(cross)
        ridge = torch.maximum(_RIDGE * inner.diagonal(dim1=1, dim2=2).mean(1), self._rounding().to(inner))[:, None]
        inner.diagonal(dim1=1, dim2=2).add_(ridge)
        return inner, cross + ridge[..., None] * prior.to(cross)

    def _rounding(self) -> Tensor:
        """More than rounded inputs can add to an eigenvalue of the covariance, above zero; (groups,).

        Inputs that never change, or are zero, leave nothing else there.
        """
        squares = self.means()[0].square().mean(1)
        return (squares * self._inner.shape[2] * torch.finfo(torch.float32).eps ** 2).clamp_min(_TINY)


def columns(spec: ConvSpec) -> int:
    """The unknowns of one output: input channels of a group times positions in the kernel."""
    return math.prod(spec.kernel_shape[1:])


def has_closed_form(kind: type[FactorizedConv], spec: ConvSpec, axes: Axes) -> bool:
    """Whether all stages of a layer together have one: two of them, the first of which takes whole patches."""
    return kind.takes_whole_patches(axes) and not spec.transposed and columns(spec) <= _LARGEST


def fits_all(layer: FactorizedConv) -> bool:
    """Whether quasi-Newton steps on all stages are worth their time: their cost grows with the square of a patch."""
    size = columns(layer.spec)
    return size <= _LARGEST and layer.spec.out_channels * size**2 <= _PRODUCTS


def fit_last(layer: FactorizedConv, seen: Regression) -> None:
    """Least squares for the last stage, in closed form.

    Args:
        layer: changed in place.
        seen: what goes into the last stage, and what the layer should say.
    """
    stage = layer[-1]
    kernels = seen.spec.to_kernels(stage.weight)
    inner, cross = seen.covariances(kernels.flatten(2))
    found = torch.linalg.solve(inner.double(), cross.mT.double()).mT
    stage.weight.copy_(seen.spec.to_weight(found.reshape(kernels.shape)))
    _settle_bias(layer, seen, found)


def fit_low_rank(layer: FactorizedConv, seen: Regression, prior: Tensor) -> None:
    """Least squares for both stages together in closed form: reduced-rank regression (Izenman 1975).

    With H the covariance of the patches and C that of the target with them, ‖Ŵ L − C L⁻ᵀ‖ is minimized for H = L Lᵀ:
    what is truncated is C L⁻ᵀ, which is W L itself where the inputs are the original's.

    Args:
        layer: whose first stage takes whole patches, changed in place.
        seen: what goes into the layer, and what it should say.
        prior: the dense weight.
    """
    spec = seen.spec
    inner, cross = seen.covariances(spec.to_kernels(prior).flatten(2))
    root = torch.linalg.cholesky(inner.double())
    goal = torch.linalg.solve_triangular(root, cross.mT.double(), upper=False).mT
    kind, modes = type(layer), spec.modes(layer.axes)
    found = [kind.solve(one.reshape(modes), layer.ranks, kind.options(), torch.Generator()) for one in goal]
    by_stage = zip(*(kind.stage_weights(one) for one in found), strict=True)
    product: Tensor | None = None
    for stage, part, parts in zip(layer.weighted, layer.stage_specs, by_stage, strict=True):
        kernels = torch.stack([values.reshape(part.kernel_shape[0], -1) for values in parts])
        if product is None:  # the first stage, which sees the patches themselves
            kernels = torch.linalg.solve_triangular(root, kernels.to(root), upper=False, left=False)
        stage.weight.copy_(part.to_weight(kernels.reshape(part.groups, *part.kernel_shape)))
        product = kernels if product is None else kernels @ product
    assert product is not None
    _settle_bias(layer, seen, product)


def fit_all(layer: FactorizedConv, seen: Regression, prior: Tensor) -> None:
    """Least squares for all stages together: quasi-Newton steps (L-BFGS) on their weights, to a local optimum.

    Args:
        layer: changed in place.
        seen: what goes into the layer, and what it should say.
        prior: the dense weight.
    """
    spec, device = seen.spec, layer.weighted[0].weight.device
    dtype = torch.promote_types(layer.weighted[0].weight.dtype, torch.float32)
    inner, cross = (one.to(device, dtype) for one in seen.covariances(spec.to_kernels(prior).flatten(2)))
    work = copy.deepcopy(layer).to(dtype)
    weights = [nn.Parameter(stage.weight.detach()) for stage in work.weighted]
    for stage, weight in zip(work.weighted, weights, strict=True):
        stage.weight = weight
    scale = float(torch.linalg.vector_norm(cross)) or 1.0
    steps = torch.optim.LBFGS(weights, max_iter=_ITERATIONS, history_size=20, line_search_fn="strong_wolfe")

    def lost() -> float:
        for weight in weights:
            weight.grad = None
        kernels = spec.to_kernels(work.weight).flatten(2)
        with torch.no_grad():
            product = kernels @ inner
            value = float(((product - 2 * cross) * kernels).sum())
        torch.autograd.backward(kernels, 2 * (product - cross) / scale)
        return value / scale

    with torch.enable_grad():
        steps.step(lost)  # type: ignore[no-untyped-call]
    for stage, weight in zip(layer.weighted, weights, strict=True):
        stage.weight.copy_(weight)
    _settle_bias(layer, seen, spec.to_kernels(layer.weight).flatten(2))


def _settle_bias(layer: FactorizedConv, seen: Regression, kernels: Tensor) -> None:
    if layer.bias is not None:
        mean, target = seen.means()
        layer.bias.copy_((target - torch.einsum("goi,gi->go", kernels.to(mean), mean)).flatten())
