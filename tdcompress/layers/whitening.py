"""Kernels seen through the second moment of their inputs: their norm is then the norm of the features.

For inputs x with E xxᵀ = L Lᵀ the features lose E ‖(W − Ŵ) x‖² = ‖W L − Ŵ L‖² on average. So a solver gets W L, what it
gives is an approximation of that, and Ŵ is that times L⁻¹. A method that works on single modes of the kernel needs an L
that does, too: for it the second moment is taken as one of channels times one of positions along each group of axes.

What the output of the model makes of the features is one more root: for gradients g with E ggᵀ = R Rᵀ the predictions
lose ½ ‖Rᵀ (W − Ŵ) L‖² (`FisherFactors`). The solver gets Rᵀ W L, and Ŵ is what it gives between R⁻ᵀ and L⁻¹.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from tdcompress.errors import CompressionError
from tdcompress.layers.spec import ConvSpec
from tdcompress.shapes import Axes

_RIDGE = 1e-3  # of the mean eigenvalue: no direction is taken for one that never occurs


class KernelWhitening(Protocol):
    """How kernels of one arrangement are whitened, and the stages of their decompositions turned back."""

    def applied(self, kernels: Tensor) -> Tensor:
        """Kernels (groups, *modes) as a solver shall see them, in float64."""

    def removed(self, kernels: Tensor, part: ConvSpec, *, first: bool, last: bool) -> Tensor:
        """A stage's kernels back in the layer's own coordinates.

        Args:
            kernels: (groups, out / groups, in / groups, *kernel_size), of a decomposition of what `applied` gave.
            part: the stage.
            first: whether it takes the layer's inputs.
            last: whether it gives the layer's outputs.

        Raises:
            CompressionError: the first stage splits the channels in another way than the layer.
        """


@dataclass(frozen=True)
class Whitening:
    """The second moments of a layer's inputs, with their roots.

    Attributes:
        channels: second moment over the input channels, (groups, in / groups, in / groups).
        kernel: second moment over the kernel's positions, (*kernel_size, *kernel_size).
        mean: the mean patch, (groups, in / groups, positions).
        joint: second moment over whole patches, (groups, in / groups · positions, in / groups · positions), if known.
        outputs: second moment over the output channels of what the model's output makes of them, (groups, out / groups,
            out / groups), at a common scale for all groups; None if features count by their size.
    """

    channels: Tensor
    kernel: Tensor
    mean: Tensor
    joint: Tensor | None = None
    outputs: Tensor | None = None

    def along(self, axes: Axes, whole_patches: bool) -> KernelWhitening:
        """How kernels of an arrangement are whitened.

        Args:
            axes: the arrangement.
            whole_patches: whether the method takes the whole patch in its first stage, and tells channels and positions
                apart nowhere. The second moment of whole patches is then taken as it is, if it is known.
        """
        if whole_patches and self.joint is not None:
            return JointWhitening(self, self.joint_root)
        return KroneckerWhitening(self, axes)

    def lost_mean(self, difference: Tensor, spec: ConvSpec) -> Tensor:
        """By how much the mean of every output falls if the weight loses `difference`: what a bias has to add."""
        kernels = spec.to_kernels(difference.double()).flatten(2)
        return torch.einsum("goi,gi->go", kernels, self.mean.flatten(1).to(kernels)).flatten()

    @cached_property
    def channel_root(self) -> Tensor:
        """Of the moment over the channels."""
        return moment_root(self.channels)

    @cached_property
    def joint_root(self) -> Tensor:
        """Of the moment over whole patches, which must be known."""
        assert self.joint is not None
        return moment_root(self.joint)

    @cached_property
    def output_root(self) -> Tensor | None:
        """Of the moment over the output channels, at unit mean eigenvalue over all groups; None without."""
        if self.outputs is None:
            return None
        mean = self.outputs.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=0)
        share = mean / mean.mean().clamp(min=torch.finfo(mean.dtype).tiny)
        return moment_root(self.outputs) * share.sqrt()[:, None, None]

    def with_outputs(self, kernels: Tensor) -> Tensor:
        """Kernels, (groups, out, …), with what the output makes of their output channels."""
        root = self.output_root
        return kernels if root is None else torch.einsum("go...,gop->gp...", kernels, root.to(kernels))

    def without_outputs(self, kernels: Tensor) -> Tensor:
        """The same taken out of the kernels of a last stage, (groups, out, …), in float64.

        Raises:
            CompressionError: the stage splits the channels in another way than the layer.
        """
        root = self.output_root
        if root is None:
            return kernels
        if kernels.shape[:2] != root.shape[:2]:
            raise CompressionError("a method whose last stage splits the layer's groups cannot be whitened by outputs.")
        moved = kernels.movedim(1, -1)
        return divided(moved.flatten(1, -2), root).reshape(moved.shape).movedim(-1, 1)

    def root_along(self, group: tuple[int, ...]) -> Tensor:
        """Of the moment over the positions along some axes."""
        if group not in self._roots_along:
            self._roots_along[group] = moment_root(self._along(group))
        return self._roots_along[group]

    @cached_property
    def _roots_along(self) -> dict[tuple[int, ...], Tensor]:
        return {}

    def _along(self, group: Sequence[int]) -> Tensor:
        """The second moment over the positions along some axes: the others summed out."""
        count = self.kernel.ndim // 2
        sizes = self.kernel.shape[:count]
        rest = [axis for axis in range(count) if axis not in group]
        letters = [chr(ord("a") + axis) for axis in range(2 * count)]
        for axis in rest:
            letters[count + axis] = letters[axis]
        kept = "".join(letters[axis] for axis in group) + "".join(letters[count + axis] for axis in group)
        size = math.prod(sizes[axis] for axis in group)
        return torch.einsum(f"{''.join(letters)}->{kept}", self.kernel).reshape(size, size)


@dataclass(frozen=True)
class KroneckerWhitening:
    """By channels ⊗ spatial axes: the roots act on single modes of the kernel, and on the stages that have them.

    Attributes:
        moments: of the layer's inputs.
        axes: the arrangement of the kernels.
    """

    moments: Whitening
    axes: Axes

    def applied(self, kernels: Tensor) -> Tensor:
        """Each mode times its root."""
        root = self.moments.channel_root.to(kernels.device)
        kernels = self.moments.with_outputs(torch.einsum("goi...,gij->goj...", kernels.double(), root))
        for mode, group in enumerate(self.axes, start=3):
            if group:
                root = self.moments.root_along(group).to(kernels)
                kernels = torch.tensordot(kernels, root, dims=([mode], [0])).movedim(-1, mode)
        return kernels

    def removed(self, kernels: Tensor, part: ConvSpec, *, first: bool, last: bool) -> Tensor:
        """The channels' root out of the first stage, the outputs' out of the last, an axis' out of that along it."""
        dtype, kernels = kernels.dtype, kernels.double()
        if last:
            kernels = self.moments.without_outputs(kernels)
        if first:
            channels = self.moments.channels
            if kernels.shape[0] != len(channels) or kernels.shape[2] != channels.shape[1]:
                raise CompressionError("a method whose first stage splits the layer's groups cannot be whitened.")
            moved = kernels.movedim(2, -1)
            kernels = divided(moved.flatten(1, -2), self.moments.channel_root).reshape(moved.shape).movedim(-1, 2)
        for group in self.axes:
            if group and all(part.kernel_size[axis] > 1 for axis in group):
                places, behind = [3 + axis for axis in group], list(range(-len(group), 0))
                moved = kernels.movedim(places, behind)
                rows = moved.reshape(-1, math.prod(moved.shape[-len(group) :]))
                kernels = divided(rows, self.moments.root_along(group)).reshape(moved.shape).movedim(behind, places)
        return kernels.to(dtype)


@dataclass(frozen=True)
class JointWhitening:
    """By the second moment of whole patches as it is, which the first stage alone has to undo.

    Attributes:
        moments: of the layer's inputs.
        root: of the moment, (groups, in / groups · positions, in / groups · positions).
    """

    moments: Whitening
    root: Tensor

    def applied(self, kernels: Tensor) -> Tensor:
        """Whole patches times the root."""
        rows = (kernels.double().flatten(2) @ self.root.to(kernels.device)).reshape(kernels.shape)
        return self.moments.with_outputs(rows)

    def removed(self, kernels: Tensor, part: ConvSpec, *, first: bool, last: bool) -> Tensor:
        """The root out of the first stage, and the outputs' out of the last."""
        dtype, kernels = kernels.dtype, kernels.double()
        if last:
            kernels = self.moments.without_outputs(kernels)
        if first:
            kernels = divided(kernels.flatten(2), self.root).reshape(kernels.shape)
        return kernels.to(dtype)


def takes_over_mean(spec: ConvSpec) -> bool:
    """Whether the bias can make up for the mean that is lost: what a transposed layer loses differs by position."""
    return spec.has_bias and not spec.transposed


def moment_root(moment: Tensor) -> Tensor:
    """A root L of second moments, (…, size, size), at unit mean eigenvalue, with a ridge: L Lᵀ = moment / mean + ridge.

    Any root will do, since a rotation behind it changes no norm; the Cholesky factor costs a thirtieth of the symmetric
    one. Where rounding has left the moment not even with the ridge positive definite, the ridge grows.
    """
    mean = moment.diagonal(dim1=-2, dim2=-1).clamp(min=0).mean(-1)[..., None, None]
    # As few copies as there can be: for a wide layer they are the largest that planning makes.
    scaled = moment / mean.clamp(min=torch.finfo(moment.dtype).tiny)
    if (mean <= 0).any():
        scaled = torch.where(mean > 0, scaled, torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device))
    diagonal, ridge = scaled.diagonal(dim1=-2, dim2=-1), _RIDGE
    plain = diagonal.clone()
    while True:
        torch.add(plain, ridge, out=diagonal)
        root, failed = torch.linalg.cholesky_ex(scaled)
        if not failed.any():
            return root
        ridge *= 10


def divided(rows: Tensor, root: Tensor) -> Tensor:
    """`rows @ root⁻¹`, for rows (…, count, size) and a lower triangular root."""
    return torch.linalg.solve_triangular(root.to(rows), rows, upper=False, left=False)
