"""Least squares of a layer's outputs on its inputs, from normal equations that stream."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tdcompress.layers import ConvSpec, FactorizedConv
from tdcompress.layers.moments import check_finite, patches

_POSITIONS = 256  # of one output at the most: neighbours see nearly the same
_RIDGE = 1e-3  # of the mean diagonal, towards the weight that is there
_ITERATIONS = 60


class Regression:
    """Means and covariances of what a convolution sees and what it should say.

    Args:
        spec: the convolution.
        centred: whether the means are taken out, for a bias or a BatchNorm to make up for.
    """

    def __init__(self, spec: ConvSpec, *, centred: bool) -> None:
        self.spec, self.centred, self.count = spec, centred, 0
        self._generator = torch.Generator().manual_seed(0)
        out, *inner = spec.kernel_shape
        size = torch.Size(inner).numel()
        self._moments = torch.zeros(spec.groups, size + 1 + out, size + 1, dtype=torch.float64)

    def update(self, inputs: Tensor, target: Tensor) -> None:
        """Take in what the convolution is called with, and what its output should be."""
        if not self.spec.kernel_size:
            target = target.reshape(-1, self.spec.out_channels)
        elif target.ndim == len(self.spec.kernel_size) + 1:
            target = target[None]
        start = 0
        for patch in patches(inputs, self.spec):
            goal = target[start : start + len(patch)].to(patch)
            start += len(patch)
            self._add(patch, goal.reshape(len(patch), self.spec.groups, -1, patch.shape[3]))

    def _add(self, patch: Tensor, goal: Tensor) -> None:
        """One of the `patches`, and the target at its positions, (samples, groups, out, positions)."""
        some = torch.randperm(patch.shape[3], generator=self._generator)[:_POSITIONS].to(patch.device)
        rows = patch[:, :, :, some].permute(1, 2, 4, 0, 3).flatten(3).flatten(1, 2)
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)  # (groups, in · kernel + 1, samples · positions)
        goals = goal[..., some].permute(1, 2, 0, 3).flatten(2)
        self._moments += (torch.cat([rows, goals], dim=1) @ rows.mT).to(self._moments)
        self.count += rows.shape[-1]

    def means(self) -> tuple[Tensor, Tensor]:
        """Of the patches, (groups, in · kernel), and of the target, (groups, out)."""
        size = self._moments.shape[2] - 1
        column = self._moments[:, :, size] / self.count
        return column[:, :size], column[:, size + 1 :]

    def covariances(self, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Of the patches with themselves and of the target with them, with a ridge towards `prior`.

        Args:
            prior: the kernels to keep to where the data says nothing, (groups, out, in · kernel).

        Raises:
            CompressionError: what was seen is not finite.
        """
        check_finite(self._moments)
        size = self._moments.shape[2] - 1
        inner, cross = self._moments[:, :size, :size] / self.count, self._moments[:, size + 1 :, :size] / self.count
        if self.centred:
            mean, target = self.means()
            inner, cross = inner - mean[:, :, None] * mean[:, None], cross - target[:, :, None] * mean[:, None]
        ridge = _RIDGE * inner.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        return inner + ridge * torch.eye(size).to(inner), cross + ridge * prior.to(cross)


def fit_last(layer: FactorizedConv, seen: Regression) -> None:
    """Least squares for the last stage, in closed form.

    Args:
        layer: changed in place.
        seen: what goes into the last stage, and what the layer should say.
    """
    stage = layer[-1]
    kernels = seen.spec.to_kernels(stage.weight)
    inner, cross = seen.covariances(kernels.flatten(2))
    found = torch.linalg.solve(inner, cross.mT).mT
    stage.weight.copy_(seen.spec.to_weight(found.reshape(kernels.shape)))
    _settle_bias(layer, seen, found)


def fit_all(layer: FactorizedConv, seen: Regression, prior: Tensor) -> None:
    """Least squares for all stages together: quasi-Newton steps (L-BFGS) on their weights, to a local optimum.

    Args:
        layer: changed in place.
        seen: what goes into the layer, and what it should say.
        prior: the dense weight.
    """
    spec, device = seen.spec, layer[0].weight.device
    dtype = torch.promote_types(layer[0].weight.dtype, torch.float32)
    inner, cross = (one.to(device, dtype) for one in seen.covariances(spec.to_kernels(prior).flatten(2)))
    work = copy.deepcopy(layer).to(dtype)
    weights = [nn.Parameter(stage.weight.detach()) for stage in work]
    for stage, weight in zip(work, weights, strict=True):
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
    for stage, weight in zip(layer, weights, strict=True):
        stage.weight.copy_(weight)
    _settle_bias(layer, seen, spec.to_kernels(layer.weight).flatten(2))


def _settle_bias(layer: FactorizedConv, seen: Regression, kernels: Tensor) -> None:
    if layer.bias is not None:
        mean, target = seen.means()
        layer.bias.copy_((target - torch.einsum("goi,gi->go", kernels.to(mean), mean)).flatten())
