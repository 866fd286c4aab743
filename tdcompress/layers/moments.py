"""What a layer gets to see: mean and second moment of its inputs, and the whitening of a kernel by them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tdcompress.decompositions.algebra import eigh
from tdcompress.errors import CompressionError
from tdcompress.layers.spec import Axes, ConvSpec

_ELEMENTS = 1 << 24  # of patches at a time: 64 MB in float32
_RIDGE = 1e-3  # of the mean eigenvalue: no direction is taken for one that never occurs


def patches(inputs: Tensor, spec: ConvSpec) -> Iterator[Tensor]:
    """What the kernel of a convolution or linear layer is laid over, a few samples at a time.

    Args:
        inputs: what the layer is called with, with or without the dimension of samples.
        spec: the layer; of a transposed one every input pixel is a patch by itself, as for a pointwise one.

    Yields:
        Views, (samples, groups, in / groups, positions, positions in the kernel), in float32 at least.

    >>> conv = torch.nn.Conv2d(4, 8, 3, padding=1)
    >>> [tuple(patch.shape) for patch in patches(torch.zeros(2, 4, 5, 6), ConvSpec.of(conv))]
    [(2, 1, 4, 30, 9)]
    """
    inputs = inputs.detach().to(torch.promote_types(inputs.dtype, torch.float32))
    if not spec.kernel_size:
        inputs = inputs.reshape(-1, spec.in_channels)
    elif inputs.ndim == len(spec.kernel_size) + 1:
        inputs = inputs[None]
    per_sample = inputs[:1].numel() * (1 if spec.transposed else math.prod(spec.kernel_size))
    for some in torch.split(inputs, max(1, _ELEMENTS // max(1, per_sample))):
        windows = some if spec.transposed else _windows(some, spec)
        kernel = () if spec.transposed else spec.kernel_size
        positions = windows.shape[2 : windows.ndim - len(kernel)]
        yield windows.reshape(len(some), spec.groups, -1, math.prod(positions), math.prod(kernel))


def _windows(inputs: Tensor, spec: ConvSpec) -> Tensor:
    """Padded and unfolded: (samples, channels, *positions, *kernel)."""
    size = [d * (n - 1) + 1 for n, d in zip(spec.kernel_size, spec.dilation, strict=True)]
    if spec.padding == "same":  # PyTorch puts the odd one at the end
        pads = [((n - 1) // 2, n // 2) for n in size]
    elif spec.padding == "valid":
        pads = [(0, 0) for _ in size]
    else:
        pads = [(int(n), int(n)) for n in spec.padding]
    if any(map(any, pads)):
        mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
        inputs = F.pad(inputs, [n for pair in reversed(pads) for n in pair], mode=mode)
    for axis, (n, stride, dilation) in enumerate(zip(size, spec.stride, spec.dilation, strict=True), start=2):
        inputs = inputs.unfold(axis, n, stride)[..., ::dilation]
    return inputs


class InputMoments:
    """Mean and second moment of the patches that a layer sees, the latter as channels ⊗ kernel positions.

    Streamed: `update` takes a batch in, and the size does not depend on how many there were. `input_moments` makes one
    for every layer of a model.

    Args:
        spec: the layer.
        joint: keep the whole second moment as well, (channels · positions)² numbers a group.

    Attributes:
        count: patches so far.

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
        self._sum = torch.zeros(spec.groups, inputs, self._positions, dtype=torch.float64)
        self._channels = torch.zeros(spec.groups, inputs, inputs, dtype=torch.float64)
        self._kernel = torch.zeros(spec.groups, self._positions, self._positions, dtype=torch.float64)
        size = inputs * self._positions
        # Of a transposed layer's inputs the channels are all that there is to know.
        self._joint = torch.zeros(spec.groups, size, size, dtype=torch.float64) if joint and size > inputs else None

    def update(self, inputs: Tensor) -> None:
        """Take in what the layer is called with.

        Raises:
            CompressionError: they are not finite.
        """
        for patch in patches(inputs, self.spec):
            by_channel = patch.permute(1, 2, 0, 3, 4).flatten(2)  # (groups, in, samples · positions · kernel)
            by_position = patch.permute(1, 4, 0, 2, 3).flatten(2)
            found = [patch.sum((0, 3)), by_channel @ by_channel.mT, by_position @ by_position.mT]
            if self._joint is not None:
                whole = patch.permute(1, 2, 4, 0, 3).flatten(3).flatten(1, 2)
                found.append(whole @ whole.mT)
            check_finite(*found)
            for total, one in zip(self._totals(), found, strict=True):
                total += one.to(total)
            self.count += patch.shape[0] * patch.shape[3]

    @property
    def mean(self) -> Tensor:
        """The mean patch, (groups, in / groups, positions in the kernel)."""
        self._check()
        return self._sum / self.count

    def whitening(self, *, centred: bool) -> Whitening:
        """The roots of the moments, for kernels of this layer.

        Args:
            centred: whether the mean is taken out, which is right where a bias can make up for it.

        Raises:
            CompressionError: nothing was seen.
        """
        mean = self.mean
        inputs, positions = mean.shape[1:]
        channels, kernel = self._channels / (self.count * positions), self._kernel / (self.count * inputs)
        if centred:
            channels, kernel = channels - mean @ mean.mT / positions, kernel - mean.mT @ mean / inputs
        sizes = self.spec.kernel_size
        # An input pixel of a transposed layer meets all of the kernel alike.
        kernel = torch.eye(math.prod(sizes)).double() if self.spec.transposed else kernel.sum(0)
        joint = None if self._joint is None else self._joint / self.count
        if joint is not None and centred:
            joint = joint - mean.flatten(1)[:, :, None] * mean.flatten(1)[:, None]
        return Whitening(channels, kernel.reshape((*sizes, *sizes)), mean, joint)

    def _totals(self) -> list[Tensor]:
        return [self._sum, self._channels, self._kernel, *([] if self._joint is None else [self._joint])]

    def _check(self) -> None:
        if not self.count:
            raise CompressionError("no input was seen; the data is empty, or the forward never reaches the layer.")


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
            root, _ = _roots(self.joint)
            return (kernels.double().flatten(2) @ root.to(kernels.device)).reshape(kernels.shape)
        root, _ = _roots(self.channels)
        kernels = torch.einsum("goi...,gij->goj...", kernels.double(), root.to(kernels.device))
        for mode, group in enumerate(axes, start=3):
            if not group:
                continue
            root, _ = _roots(self._along(group))
            kernels = torch.tensordot(kernels, root.to(kernels), dims=([mode], [0])).movedim(-1, mode)
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
            _, inverse = _roots(self.joint)
            return (kernels.flatten(2) @ inverse.to(kernels.device)).reshape(kernels.shape).to(dtype)
        if first:
            if kernels.shape[0] != len(self.channels) or kernels.shape[2] != self.channels.shape[1]:
                raise CompressionError("a method whose first stage splits the layer's groups cannot be whitened.")
            _, inverse = _roots(self.channels)
            kernels = torch.einsum("goi...,gij->goj...", kernels, inverse.to(kernels))
        for group in axes:
            if group and all(part.kernel_size[axis] > 1 for axis in group):
                _, inverse = _roots(self._along(group))
                places, last = [3 + axis for axis in group], list(range(-len(group), 0))
                moved = kernels.movedim(places, last)
                kernels = (moved.flatten(-len(group)) @ inverse.to(kernels)).reshape(moved.shape).movedim(last, places)
        return kernels.to(dtype)

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


def whitening_of(moments: InputMoments, spec: ConvSpec) -> Whitening:
    """The whitening of a layer's kernels by the moments of its inputs.

    Raises:
        CompressionError: the moments are another layer's, or nothing was seen.
    """
    if not isinstance(moments, InputMoments):
        raise CompressionError(f"whiten= takes InputMoments, see td.input_moments, got a {type(moments).__name__}.")
    if moments.spec.with_bias(spec.has_bias) != spec:
        raise CompressionError(f"the moments are of another layer's inputs, {moments.spec}; this one is {spec}.")
    return moments.whitening(centred=takes_over_mean(spec))


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


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric root of a second moment, at unit mean, and its inverse."""
    values, vectors = eigh(moment)
    mean = values.clamp(min=0).mean(-1, keepdim=True)
    scaled = torch.where(mean > 0, values.clamp(min=0) / mean.clamp(min=torch.finfo(mean.dtype).tiny), 1.0) + _RIDGE
    root = scaled.sqrt()
    return (vectors * root[..., None, :]) @ vectors.mT, (vectors / root[..., None, :]) @ vectors.mT
