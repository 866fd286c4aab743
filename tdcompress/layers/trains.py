"""Tensor trains and rings over (in, *spatial, out): their cores as stages, and stages as cores."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tdcompress.decompositions.form_parts import identity
from tdcompress.errors import CompressionError
from tdcompress.layers.spec import ConvSpec
from tdcompress.shapes import Axes


def as_convolutions(cores: Sequence[Tensor]) -> list[Tensor]:
    """Cores, (before, size, behind), as the weights of convolutions, with what comes out first.

    What closes a ring, the bond before the first core and behind the last, counts slowest among the channels.
    """
    first, *spatial, last = cores
    return [
        first.transpose(1, 2).flatten(0, 1),
        *(core.permute(2, 0, 1) for core in spatial),
        last.permute(1, 2, 0).flatten(1),
    ]


def spatial_cores(spec: ConvSpec, axes: Axes, kernels: Sequence[Tensor], bond: int, *, like: Tensor) -> list[Tensor]:
    """The cores of all spatial axes, with identities along those of size 1.

    Args:
        spec: the layer.
        axes: its arrangement.
        kernels: of the spatial stages, one group's.
        bond: the one before the first of them.
        like: in whose precision, and on whose device, identities are.
    """
    cores, stages = [], dict(zip(axes, kernels, strict=True))
    for axis in _order(spec, axes):
        if (axis,) in stages:
            cores.append(stages[(axis,)].reshape(-1, bond, spec.kernel_size[axis]).permute(1, 2, 0))
            bond = cores[-1].shape[2]
        else:
            cores.append(identity(bond, like)[:, None])
    return cores


def train_shape(spec: ConvSpec, axes: Axes) -> tuple[int, ...]:
    """The shape of one group's kernel as a train sees it, (in, *spatial, out), the axes in the order of the stages.

    Raises:
        CompressionError: the arrangement has some axes together.
    """
    if any(len(group) > 1 for group in axes):
        raise CompressionError(f"a chain of cores has the spatial axes one by one, got axes={axes}.")
    out, inner = spec.kernel_shape[:2]
    return (inner, *(spec.kernel_size[axis] for axis in _order(spec, axes)), out)


def without_pointwise(cores: Sequence[Tensor], spec: ConvSpec, axes: Axes) -> tuple[Tensor, ...]:
    """The cores along axes of size 1 multiplied into those before them."""
    first, *spatial, last = cores
    kept = [first]
    for axis, core in zip(_order(spec, axes), spatial, strict=True):
        if axis in spec.pointwise_axes:
            kept[-1] = kept[-1] @ core[:, 0]
        else:
            kept.append(core)
    return (*kept, last)


def _order(spec: ConvSpec, axes: Axes) -> list[int]:
    """All spatial axes, those of size 1 in their own places; last where the others are not in theirs."""
    order = [axis for (axis,) in axes]
    return list(range(len(spec.kernel_size))) if order == sorted(order) else [*order, *spec.pointwise_axes]
