"""What a layer gets to see: mean and second moment of its inputs, and the whitening of a kernel by them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tdcompress.decompositions.algebra import self_product, unravelled
from tdcompress.errors import CompressionError
from tdcompress.layers.spec import ConvSpec
from tdcompress.shapes import Axes

_ELEMENTS = 1 << 24  # of patches at a time: 64 MB in float32
_RIDGE = 1e-3  # of the mean eigenvalue: no direction is taken for one that never occurs
_PRODUCTS = 1 << 28  # for the moment over kernel positions, of one batch; no more patches count for it
_WIDE = 2048  # channels above which a moment is summed in float32, since it is as large as the layer's weight
_JOINT_BYTES = 4 << 30  # that the moment of whole patches may have


def patches(inputs: Tensor, spec: ConvSpec, positions: Tensor | None = None) -> Iterator[Tensor]:
    """What the kernel of a convolution or linear layer is laid over, a few samples at a time.

    Args:
        inputs: what the layer is called with, with or without the dimension of samples.
        spec: the layer; of a transposed one every input pixel is a patch by itself, as for a pointwise one.
        positions: the places in the output to look at, counted through; None for all.

    Yields:
        (samples, groups, in / groups, positions, positions in the kernel), in float32 at least.

    >>> conv = torch.nn.Conv2d(4, 8, 3, padding=1)
    >>> [tuple(patch.shape) for patch in patches(torch.zeros(2, 4, 5, 6), ConvSpec.of(conv))]
    [(2, 1, 4, 30, 9)]
    """
    kernel = () if spec.transposed else spec.kernel_size
    for some in _padded(inputs, spec):
        windows = _windows(some, spec)
        sizes = windows.shape[2 : windows.ndim - len(kernel)]
        count = math.prod(sizes) if positions is None else len(positions)
        if positions is not None:
            places: Any = (slice(None), slice(None), *unravelled(positions.to(some.device), sizes))
            windows = windows[places]
        yield windows.reshape(len(some), spec.groups, -1, count, math.prod(kernel))


def _padded(inputs: Tensor, spec: ConvSpec) -> Iterator[Tensor]:
    """A few samples at a time, (samples, channels, *size), padded as the layer pads, in float32 at least."""
    inputs = inputs.detach().to(torch.promote_types(inputs.dtype, torch.float32))
    if not spec.kernel_size:
        inputs = inputs.reshape(-1, spec.in_channels)
    elif inputs.ndim == len(spec.kernel_size) + 1:
        inputs = inputs[None]
    per_sample = inputs[:1].numel() * (1 if spec.transposed else math.prod(spec.kernel_size))
    for some in torch.split(inputs, max(1, _ELEMENTS // max(1, per_sample))):
        yield some if spec.transposed else _pad(some, spec)


def _pad(inputs: Tensor, spec: ConvSpec) -> Tensor:
    if spec.padding == "same":  # PyTorch puts the odd one at the end
        pads = [((n - 1) // 2, n // 2) for n in _reach(spec)]
    elif spec.padding == "valid":
        pads = [(0, 0) for _ in spec.kernel_size]
    else:
        pads = [(int(n), int(n)) for n in spec.padding]
    if not any(map(any, pads)):
        return inputs
    mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
    return F.pad(inputs, [n for pair in reversed(pads) for n in pair], mode=mode)


def _reach(spec: ConvSpec) -> list[int]:
    """How many pixels the kernel spans along every axis."""
    return [d * (n - 1) + 1 for n, d in zip(spec.kernel_size, spec.dilation, strict=True)]


def _windows(padded: Tensor, spec: ConvSpec) -> Tensor:
    """A view, (samples, channels, *positions, *kernel)."""
    if spec.transposed:
        return padded
    for axis, (n, stride, dilation) in enumerate(zip(_reach(spec), spec.stride, spec.dilation, strict=True), start=2):
        padded = padded.unfold(axis, n, stride)[..., ::dilation]
    return padded


def _uses(size: Sequence[int], spec: ConvSpec) -> Tensor:
    """How many patches every pixel of a padded input is in, each with its own place in the kernel."""
    uses = torch.ones((), dtype=torch.float32, device="cpu")
    for n, reach, kernel, stride, dilation in zip(
        size, _reach(spec), spec.kernel_size, spec.stride, spec.dilation, strict=True
    ):
        along = torch.zeros(n, dtype=torch.float32, device="cpu")
        last = (n - reach) // stride * stride  # where the last patch begins
        for tap in range(0, kernel * dilation, dilation):
            along[tap : tap + last + 1 : stride] += 1
        uses = uses[..., None] * along
    return uses


class InputMoments:
    """Mean and second moment of the patches that a layer sees, the latter as channels ⊗ kernel positions.

    Streamed: `update` takes a batch in, and the size does not depend on how many there were. `input_moments` makes one
    for every layer of a model. What is summed is what remains when the mean of the first batch is subtracted, so that
    inputs far from zero lose no digits.

    Of long kernels, where the moment over kernel positions would take longer than the layer itself, only as many
    patches count for it as can be had in that time; they are drawn by a generator of their own.

    Args:
        spec: the layer.
        joint: keep the whole second moment as well, (channels · positions)² numbers a group.

    Attributes:
        count: patches so far.

    Raises:
        CompressionError: the whole second moment would be too large.

    >>> conv = torch.nn.Conv2d(4, 8, 3, padding=1)
    >>> moments = InputMoments(ConvSpec.of(conv))
    >>> moments.update(torch.randn(2, 4, 5, 5))
    >>> moments.count, moments.mean.shape
    (50, torch.Size([1, 4, 9]))
    """

    def __init__(self, spec: ConvSpec, *, joint: bool = False) -> None:
        self.spec, self.count = spec, 0
        self._positions = 1 if spec.transposed else math.prod(spec.kernel_size)
        inputs = spec.in_channels // spec.groups
        size = inputs * self._positions
        # Of a transposed layer's inputs the channels are all that there is to know.
        joint = joint and size > inputs
        if joint and 8 * spec.groups * size**2 > _JOINT_BYTES:
            raise CompressionError(
                f"the second moment of whole patches would have {spec.groups} × {size}² numbers, "
                f"{8e-9 * spec.groups * size**2:.3g} GB; leave joint=False, or this layer out."
            )
        wide = torch.float32 if inputs > _WIDE else torch.float64
        self._shift: Tensor | None = None  # (channels,), near the mean
        self._sum = torch.zeros(spec.groups, inputs, self._positions, dtype=torch.float64, device="cpu")
        self._channels = torch.zeros(spec.groups, inputs, inputs, dtype=wide, device="cpu")
        self._kernel = torch.zeros(self._positions, self._positions, dtype=torch.float64, device="cpu")
        self._rows = 0  # of single channels' patches that count for the moment over positions
        self._joint = torch.zeros(spec.groups, size, size, dtype=torch.float64, device="cpu") if joint else None
        self._generator = torch.Generator().manual_seed(0)

    def update(self, inputs: Tensor) -> None:
        """Take in what the layer is called with.

        Raises:
            CompressionError: they are not finite.
        """
        for some in _padded(inputs, self.spec):
            if self._shift is None:
                self._shift = some.double().transpose(0, 1).flatten(1).mean(1)
                check_finite(self._shift)
            shifted = some - self._shift.to(some).reshape(-1, *[1] * (some.ndim - 2))
            total = shifted.double().sum(0, keepdim=True)  # of all samples, and its patches sum up to theirs
            windows = _windows(total, self.spec)
            positions = windows.shape[2 : windows.ndim - (0 if self.spec.transposed else len(self.spec.kernel_size))]
            check_finite(total)
            sums = windows.reshape(*self._sum.shape[:2], math.prod(positions), -1).sum(2)
            self._sum = self._sum.to(total.device) + sums
            self._add_channels(shifted)
            if self._positions > 1:
                self._add_kernel(shifted, len(some) * math.prod(positions))
            if self._joint is not None:
                self._add_joint(shifted)
            self.count += len(some) * math.prod(positions)

    def _add_channels(self, shifted: Tensor) -> None:
        """Every pixel as often as there are patches that it is in."""
        pixels = shifted.flatten(2) if shifted.ndim > 2 else shifted[..., None]
        if not self.spec.transposed and (self._positions > 1 or any(stride > 1 for stride in self.spec.stride)):
            pixels = pixels * _uses(shifted.shape[2:], self.spec).flatten().sqrt().to(pixels)
        rows = pixels.reshape(len(pixels), self.spec.groups, -1, pixels.shape[2]).permute(1, 2, 0, 3).flatten(2)
        self._channels = self._channels.to(rows.device).add_(self_product(rows))

    def _add_kernel(self, shifted: Tensor, patches_of_a_channel: int) -> None:
        """All channels' patches, or so many of them that it does not take longer than the rest."""
        single = shifted.flatten(0, 1)[:, None]  # one channel of one sample each
        products = self._positions**2 * patches_of_a_channel * self.spec.in_channels
        if products > _PRODUCTS:
            count = max(1, len(single) * _PRODUCTS // products)
            chosen = torch.randperm(len(single), generator=self._generator, device="cpu")[:count]
            single = single[chosen.to(single.device)]
        for some in torch.split(single, max(1, _ELEMENTS // (single[0].numel() * self._positions))):
            rows = _windows(some, self.spec).reshape(-1, self._positions)
            self._kernel = self._kernel.to(rows.device) + rows.mT @ rows
            self._rows += len(rows)

    def _add_joint(self, shifted: Tensor) -> None:
        assert self._joint is not None
        groups, size = self._joint.shape[:2]
        windows = _windows(shifted, self.spec)
        patch = windows.reshape(len(shifted), groups, size // self._positions, -1, self._positions)
        rows = patch.permute(1, 2, 4, 0, 3).flatten(3).flatten(1, 2)
        self._joint = self._joint.to(rows.device).add_(self_product(rows))

    @property
    def mean(self) -> Tensor:
        """The mean patch, (groups, in / groups, positions in the kernel)."""
        mean, shift = self._means()
        return mean + shift

    def _means(self) -> tuple[Tensor, Tensor]:
        """The mean patch less the shift, and the shift, (groups, in / groups, 1)."""
        if not self.count or self._shift is None:
            raise CompressionError("no input was seen; the data is empty, or the forward never reaches the layer.")
        return self._sum / self.count, self._shift.reshape(*self._sum.shape[:2], 1).to(self._sum)

    def whitening(self, *, centred: bool) -> Whitening:
        """The roots of the moments, for kernels of this layer.

        Args:
            centred: whether the mean is taken out, which is right where a bias can make up for it.

        Raises:
            CompressionError: nothing was seen.
        """
        mean, shift = self._means()
        whole = mean + shift
        inputs, positions = mean.shape[1:]

        def second(of_shifted: Tensor, rows: str) -> Tensor:
            """The second moment from that of x − s, which is its own mean's square above the covariance."""
            found = of_shifted.to(mean) - torch.einsum(rows, mean, mean)
            return found if centred else found + torch.einsum(rows, whole, whole)

        channels = second(self._channels / self.count, "gcp,gdp->gcd") / positions
        sizes = self.spec.kernel_size
        if self.spec.transposed:  # an input pixel meets all of the kernel alike
            kernel = torch.eye(math.prod(sizes), dtype=torch.float64, device="cpu")
        elif self._positions == 1:
            kernel = torch.ones(1, 1, dtype=torch.float64, device="cpu")
        else:
            rows = self.spec.in_channels / max(1, self._rows)
            kernel = second(self._kernel * rows, "gcp,gcq->pq") / inputs
        joint = None
        if self._joint is not None:
            flat = self._joint.reshape(-1, inputs, positions, inputs, positions) / self.count
            joint = second(flat, "gcp,gdq->gcpdq").reshape(self._joint.shape)
        return Whitening(channels, kernel.reshape((*sizes, *sizes)), whole, joint)


@dataclass(frozen=True)
class Whitening:
    """A kernel seen through the second moment of its inputs: its norm is then the norm of the features.

    The second moment is taken as a Kronecker product of channels and spatial axes, so that it acts on single modes of
    the kernel; a method solves for the transformed kernel, and the inverse is put into its stages. Where one stage
    takes the whole patch, the second moment is taken as it is, if it is known.

    Attributes:
        channels: second moment over the input channels, (groups, in / groups, in / groups).
        kernel: second moment over the kernel's positions, (*kernel_size, *kernel_size).
        mean: the mean patch, (groups, in / groups, positions).
        joint: second moment over whole patches, (groups, in / groups · positions, in / groups · positions), if known.
    """

    channels: Tensor
    kernel: Tensor
    mean: Tensor
    joint: Tensor | None = None

    def of_kernels(self, kernels: Tensor, axes: Axes, whole: bool = False) -> Tensor:
        """Kernels (groups, *modes), arranged by `axes`, as a solver shall see them.

        Args:
            kernels: of the layer.
            axes: its arrangement.
            whole: whether the method takes the whole patch in its first stage, and tells channels and positions apart
                nowhere.
        """
        if whole and self.joint is not None:
            return (kernels.double().flatten(2) @ self._joint_root.to(kernels.device)).reshape(kernels.shape)
        root = self._channel_root.to(kernels.device)
        kernels = torch.einsum("goi...,gij->goj...", kernels.double(), root)
        for mode, group in enumerate(axes, start=3):
            if group:
                root = self._root_along(group).to(kernels)
                kernels = torch.tensordot(kernels, root, dims=([mode], [0])).movedim(-1, mode)
        return kernels

    def undone(self, kernels: Tensor, part: ConvSpec, axes: Axes, first: bool, whole: bool = False) -> Tensor:
        """A stage's kernels, (groups, out / groups, in / groups, *kernel_size), back in the layer's own coordinates.

        Args:
            kernels: from the decomposition of what `of_kernels` gave.
            part: the stage.
            axes: the layer's arrangement.
            first: whether the stage takes the layer's inputs.
            whole: as it was for `of_kernels`.

        Raises:
            CompressionError: the first stage splits the channels in another way than the layer.
        """
        dtype, kernels = kernels.dtype, kernels.double()
        if whole and self.joint is not None:
            if not first:
                return kernels.to(dtype)
            return _divided(kernels.flatten(2), self._joint_root).reshape(kernels.shape).to(dtype)
        if first:
            if kernels.shape[0] != len(self.channels) or kernels.shape[2] != self.channels.shape[1]:
                raise CompressionError("a method whose first stage splits the layer's groups cannot be whitened.")
            moved = kernels.movedim(2, -1)
            kernels = _divided(moved.flatten(1, -2), self._channel_root).reshape(moved.shape).movedim(-1, 2)
        for group in axes:
            if group and all(part.kernel_size[axis] > 1 for axis in group):
                places, last = [3 + axis for axis in group], list(range(-len(group), 0))
                moved = kernels.movedim(places, last)
                rows = moved.reshape(-1, math.prod(moved.shape[-len(group) :]))
                kernels = _divided(rows, self._root_along(group)).reshape(moved.shape).movedim(last, places)
        return kernels.to(dtype)

    @cached_property
    def _channel_root(self) -> Tensor:
        return _root(self.channels)

    @cached_property
    def _joint_root(self) -> Tensor:
        assert self.joint is not None
        return _root(self.joint)

    @cached_property
    def _roots_along(self) -> dict[tuple[int, ...], Tensor]:
        return {}

    def _root_along(self, group: tuple[int, ...]) -> Tensor:
        if group not in self._roots_along:
            self._roots_along[group] = _root(self._along(group))
        return self._roots_along[group]

    def lost_mean(self, difference: Tensor, spec: ConvSpec) -> Tensor:
        """By how much the mean of every output falls if the weight loses `difference`: what a bias has to add."""
        kernels = spec.to_kernels(difference.double()).flatten(2)
        return torch.einsum("goi,gi->go", kernels, self.mean.flatten(1).to(kernels)).flatten()

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


def whitening_of(moments: InputMoments | Whitening, spec: ConvSpec) -> Whitening:
    """The whitening of a layer's kernels by the moments of its inputs; one that is there already is good as it is.

    Raises:
        CompressionError: the moments are another layer's, or nothing was seen.
    """
    if isinstance(moments, Whitening):
        return moments
    if not isinstance(moments, InputMoments):
        raise CompressionError(f"whiten= takes InputMoments, see td.input_moments, got a {type(moments).__name__}.")
    if moments.spec.with_bias(spec.has_bias) != spec:
        raise CompressionError(f"the moments are of another layer's inputs, {moments.spec}; this one is {spec}.")
    return moments.whitening(centred=takes_over_mean(spec))


def moment_bytes(spec: ConvSpec) -> int:
    """What the moments of a layer's inputs take, but for the whole second moment; an embedding's have none."""
    if not spec.adapter.reads_features:
        return 0
    inputs = spec.in_channels // spec.groups
    positions = 1 if spec.transposed else math.prod(spec.kernel_size)
    return spec.groups * inputs**2 * (4 if inputs > _WIDE else 8) + 8 * (positions**2 + spec.in_channels * positions)


def check_finite(*features: Tensor) -> None:
    """Refuse to learn from features, or sums of them, that are NaN or infinite.

    Raises:
        CompressionError: they are.
    """
    if not all(one.isfinite().all() for one in features):
        raise CompressionError(
            "the features are NaN or infinite; look at the data, and at the model in this precision."
        )


def takes_over_mean(spec: ConvSpec) -> bool:
    """Whether the bias can make up for the mean that is lost: what a transposed layer loses differs by position."""
    return spec.has_bias and not spec.transposed


def _root(moment: Tensor) -> Tensor:
    """A root L of second moments, (…, size, size), at unit mean eigenvalue, with a ridge: L Lᵀ = moment / mean + ridge.

    Any root will do, since a rotation behind it changes no norm; the Cholesky factor costs a thirtieth of the symmetric
    one. Where rounding has left the moment not even with the ridge positive definite, the ridge grows.
    """
    diagonal = moment.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.clamp(min=0).mean(-1)[..., None, None]
    scaled = torch.where(mean > 0, moment / mean.clamp(min=torch.finfo(moment.dtype).tiny), 0.0)
    unit = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
    scaled = torch.where(mean > 0, scaled, unit)
    ridge = _RIDGE
    while True:
        root, failed = torch.linalg.cholesky_ex(scaled + ridge * unit)
        if not failed.any():
            return root
        ridge *= 10


def _divided(rows: Tensor, root: Tensor) -> Tensor:
    """`rows @ root⁻¹`, for rows (…, count, size) and a lower triangular root."""
    return torch.linalg.solve_triangular(root.to(rows), rows, upper=False, left=False)
