"""What a layer gets to see: mean and second moment of its inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import add_self_product
from tdcompress.errors import CompressionError
from tdcompress.layers.patches import ELEMENTS, padded, uses, windows
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.whitening import Whitening

_PRODUCTS = 1 << 28  # for the moment over kernel positions, of one batch; no more patches count for it
_WIDE = 2048  # channels, or entries of a patch, above which a moment is summed in float32
_BYTES = 4 << 30  # that the second moment of whole patches, or of gradients, may have


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
        if joint:
            check_size(spec.groups, size, "whole patches", "leave joint=False, or this layer out")
        self._shift: Tensor | None = None  # (channels,), near the mean
        self._sum = torch.zeros(spec.groups, inputs, self._positions, dtype=torch.float64, device="cpu")
        self._channels = torch.zeros(spec.groups, inputs, inputs, dtype=precision(inputs), device="cpu")
        self._kernel = torch.zeros(self._positions, self._positions, dtype=torch.float64, device="cpu")
        self._rows = 0  # of single channels' patches that count for the moment over positions
        self._joint = torch.zeros(spec.groups, size, size, dtype=precision(size), device="cpu") if joint else None
        self._generator = torch.Generator().manual_seed(0)

    def update(self, inputs: Tensor) -> None:
        """Take in what the layer is called with.

        Raises:
            CompressionError: they are not finite.
        """
        for some in padded(inputs, self.spec):
            if self._shift is None:
                self._shift = some.double().transpose(0, 1).flatten(1).mean(1)
                check_finite(self._shift)
            shifted = (some - self._shift.to(some).reshape(-1, *[1] * (some.ndim - 2))).contiguous()
            total = shifted.double().sum(0, keepdim=True)  # of all samples, and its patches sum up to theirs
            seen = windows(total, self.spec)
            positions = seen.shape[2 : seen.ndim - (0 if self.spec.transposed else len(self.spec.kernel_size))]
            check_finite(total)
            sums = seen.reshape(*self._sum.shape[:2], math.prod(positions), -1).sum(2)
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
            pixels = pixels * uses(shifted.shape[2:], self.spec).flatten().sqrt().to(pixels)
        rows = pixels.reshape(len(pixels), self.spec.groups, -1, pixels.shape[2]).permute(1, 2, 0, 3).flatten(2)
        self._channels = add_self_product(self._channels.to(rows.device), rows)

    def _add_kernel(self, shifted: Tensor, patches_of_a_channel: int) -> None:
        """All channels' patches, or so many of them that it does not take longer than the rest."""
        single = shifted.flatten(0, 1)[:, None]  # one channel of one sample each
        products = self._positions**2 * patches_of_a_channel * self.spec.in_channels
        if products > _PRODUCTS:
            count = max(1, len(single) * _PRODUCTS // products)
            chosen = torch.randperm(len(single), generator=self._generator, device="cpu")[:count]
            single = single[chosen.to(single.device)]
        for some in torch.split(single, max(1, ELEMENTS // (single[0].numel() * self._positions))):
            rows = windows(some, self.spec).reshape(-1, self._positions)
            self._kernel = self._kernel.to(rows.device) + rows.mT @ rows
            self._rows += len(rows)

    def _add_joint(self, shifted: Tensor) -> None:
        assert self._joint is not None
        groups, size = self._joint.shape[:2]
        seen, axes = windows(shifted, self.spec), len(self.spec.kernel_size)
        # Taps before positions, so that what is copied are pieces of an image's rows.
        order = [1, *range(2 + axes, 2 + 2 * axes), 0, *range(2, 2 + axes)]
        rows = seen.permute(order).reshape(groups, size, -1)
        self._joint = add_self_product(self._joint.to(rows.device), rows)

    def changed(self, change: Tensor, offset: Tensor | None = None) -> Tensor:
        """The second moment of D·a + b over the patches a: by how much the features of a changed layer differ.

        Exact where the whole second moment is known or the patches are single positions; otherwise that of channels
        times that of positions in the kernel stands for it.

        Args:
            change: D, (groups, rows, in / groups · positions in the kernel).
            offset: b, (groups, rows); zero by default.

        Returns:
            (groups, rows, rows), in float64.

        Raises:
            CompressionError: nothing was seen.
        """
        mean, shift = self._means()
        change = change.to(mean)
        offset = torch.zeros_like(change[:, :, 0]) if offset is None else offset.to(mean)
        # D·a + b = D·(a − s) + c, with c the change at the shift s: far from zero no digit is lost.
        constant = offset + torch.einsum("goi,gi->go", change, shift.expand(mean.shape).flatten(1))
        drift = torch.einsum("goi,gi->go", change, mean.flatten(1))
        across = torch.einsum("go,ge->goe", drift, constant)
        return self._spread(change) + across + across.mT + torch.einsum("go,ge->goe", constant, constant)

    def _spread(self, change: Tensor) -> Tensor:
        """The second moment of D·(a − s), (groups, rows, rows)."""
        whole = self._joint if self._joint is not None else self._channels if self._positions == 1 else None
        if whole is not None:
            rows = change.to(whole)
            return (rows @ whole @ rows.mT).to(change) / self.count
        parts = change.reshape(*change.shape[:2], -1, self._positions)
        kernel = self._kernel / self._kernel.trace().clamp(min=torch.finfo(change.dtype).tiny)
        channels = self._channels.to(change) / self.count  # summed over the positions
        return torch.einsum("gocp,gcd,pq,gedq->goe", parts, channels, kernel.to(change), parts)

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
        full_mean = mean + shift
        inputs, positions = mean.shape[1:]

        def second(of_shifted: Tensor, rows: str) -> Tensor:
            """The second moment from that of x − s, which is its own mean's square above the covariance."""
            moment = of_shifted.to(mean).sub_(torch.einsum(rows, mean, mean))
            return moment if centred else moment.add_(torch.einsum(rows, full_mean, full_mean))

        channels = second(self._channels / self.count, "gcp,gdp->gcd").div_(positions)
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
        return Whitening(channels, kernel.reshape((*sizes, *sizes)), full_mean, joint)


def moment_bytes(spec: ConvSpec) -> int:
    """What the moments of a layer's inputs take, but for the whole second moment; an embedding's have none."""
    if not spec.adapter.reads_features:
        return 0
    inputs = spec.in_channels // spec.groups
    positions = 1 if spec.transposed else math.prod(spec.kernel_size)
    return second_moment_bytes(spec.groups, inputs) + 8 * (positions**2 + spec.in_channels * positions)


def second_moment_bytes(groups: int, size: int) -> int:
    """What `groups` second moments over `size` channels, or entries of a patch, take."""
    return groups * size**2 * precision(size).itemsize


def check_size(groups: int, size: int, what: str, advice: str) -> None:
    """Refuse second moments that would be too large.

    Raises:
        CompressionError: they would.
    """
    nbytes = second_moment_bytes(groups, size)
    if nbytes > _BYTES:
        raise CompressionError(
            f"the second moment of {what} would have {groups} × {size}² numbers, {1e-9 * nbytes:.3g} GB; {advice}."
        )


def precision(size: int) -> torch.dtype:
    """In which a second moment over so many channels is summed: one that is as large as a weight takes no more."""
    return torch.float32 if size > _WIDE else torch.float64


def check_finite(*features: Tensor) -> None:
    """Refuse to learn from features, or sums of them, that are NaN or infinite.

    Raises:
        CompressionError: they are.
    """
    if not all(one.isfinite().all() for one in features):
        raise CompressionError(
            "the features are NaN or infinite; look at the data, and at the model in this precision."
        )
