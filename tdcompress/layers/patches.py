"""What the kernel of a layer is laid over: its inputs padded, as windows, and as patches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tdcompress.decompositions.algebra import unravelled
from tdcompress.errors import CompressionError
from tdcompress.layers.spec import ConvSpec

ELEMENTS = 1 << 24  # of patches at a time: 64 MB in float32


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
    for some in padded(inputs, spec):
        seen = windows(some, spec)
        sizes = seen.shape[2 : seen.ndim - len(kernel)]
        count = math.prod(sizes) if positions is None else len(positions)
        if positions is not None:
            places: Any = (slice(None), slice(None), *unravelled(positions.to(some.device), sizes))
            seen = seen[places]
        yield seen.reshape(len(some), spec.groups, -1, count, math.prod(kernel))


def padded(inputs: Tensor, spec: ConvSpec) -> Iterator[Tensor]:
    """A few samples at a time, (samples, channels, *size), padded as the layer pads, in float32 at least.

    Of a call without samples, as an expert has that no token is sent to, there is nothing.

    Raises:
        CompressionError: the layer has other channels.
    """
    if not inputs.numel():
        return
    axis = -1 - len(spec.kernel_size)
    if inputs.ndim < -axis or inputs.shape[axis] != spec.in_channels:
        raise CompressionError(
            f"it takes {spec.in_channels} channels, and is called with an input of the shape {tuple(inputs.shape)}."
        )
    inputs = inputs.detach().to(torch.promote_types(inputs.dtype, torch.float32))
    if not spec.kernel_size:
        inputs = inputs.reshape(-1, spec.in_channels)
    elif inputs.ndim == len(spec.kernel_size) + 1:
        inputs = inputs[None]
    per_sample = inputs[:1].numel() * (1 if spec.transposed else math.prod(spec.kernel_size))
    for some in torch.split(inputs, max(1, ELEMENTS // max(1, per_sample))):
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


def windows(images: Tensor, spec: ConvSpec) -> Tensor:
    """A view of padded inputs, (samples, channels, *positions, *kernel)."""
    if spec.transposed:
        return images
    for axis, (n, stride, dilation) in enumerate(zip(_reach(spec), spec.stride, spec.dilation, strict=True), start=2):
        images = images.unfold(axis, n, stride)[..., ::dilation]
    return images


def uses(size: Sequence[int], spec: ConvSpec) -> Tensor:
    """How many patches every pixel of a padded input is in, each with its own place in the kernel."""
    found = torch.ones((), dtype=torch.float32, device="cpu")
    for n, reach, kernel, stride, dilation in zip(
        size, _reach(spec), spec.kernel_size, spec.stride, spec.dilation, strict=True
    ):
        along = torch.zeros(n, dtype=torch.float32, device="cpu")
        last = (n - reach) // stride * stride  # where the last patch begins
        for tap in range(0, kernel * dilation, dilation):
            along[tap : tap + last + 1 : stride] += 1
        found = found[..., None] * along
    return found
