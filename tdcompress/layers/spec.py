"""What a layer is, without its weights: the arguments that a factorized one has to keep.

A linear layer is the convolution that has no spatial axes: its kernel size, stride and padding are empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.errors import CompressionError, unknown
from tdcompress.layers.adapters import LayerKind
from tdcompress.layers.kinds import KINDS, as_dense, default_kind, kind_of
from tdcompress.shapes import Axes


@dataclass(frozen=True)
class ConvSpec:
    """The arguments of a convolution, transposed or not, of an `nn.Linear`, or of another kind of dense layer.

    All fields are numbers, words and tuples of them.

    Attributes:
        in_channels: channels, or features, of the input.
        out_channels: channels, or features, of the output.
        kernel_size: one entry for each spatial axis; their number tells 1d, 2d and 3d apart, and a linear layer
            has none.
        stride: one entry an axis.
        padding: one entry an axis, or `"same"` or `"valid"`.
        dilation: one entry an axis.
        groups: blocks of channels that do not see each other.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`.
        has_bias: whether a bias is added.
        transposed: whether it is a transposed convolution.
        output_padding: of a transposed convolution, one entry an axis; zeros by default.
        kind: the name of the kind of layer; PyTorch's own by default, `"Linear"` to `"ConvTranspose3d"`.
        options: what else the kind has to know, by name: the `padding_idx` of an embedding.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"
    has_bias: bool = True
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    kind: str = ""
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", default_kind(len(self.kernel_size), self.transposed, self.groups))
        if not self.output_padding:
            object.__setattr__(self, "output_padding", tuple(0 for _ in self.kernel_size))

    @classmethod
    def of(cls, layer: nn.Module) -> ConvSpec:
        """The arguments of `layer`.

        Raises:
            CompressionError: `layer` is not exactly one of the kinds that can be factorized.
        """
        return cls.read(as_dense(layer))

    @classmethod
    def read(cls, layer: nn.Module) -> ConvSpec:
        """What the attributes of `layer` say, whatever its forward does: also for a subclass or a parametrized one."""
        kind = kind_of(layer)
        if kind is None:
            raise CompressionError(f"{type(layer).__name__} is no dense layer; {', '.join(KINDS)} are.")
        return cls(**kind.arguments(layer), kind=kind.name)

    @property
    def adapter(self) -> LayerKind:
        """What is known of layers of this kind.

        Raises:
            CompressionError: nothing is, for example because `register_layer_kind` was not called in this process.
        """
        if self.kind not in KINDS:
            raise unknown("kind of layer", self.kind, KINDS)
        return KINDS[self.kind]

    @property
    def is_matrix(self) -> bool:
        """Whether the weight is a matrix: there are no spatial axes."""
        return not self.kernel_size

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape of one group's kernel: (out / groups, in / groups, *kernel_size)."""
        return (self.out_channels // self.groups, self.in_channels // self.groups, *self.kernel_size)

    @property
    def kernel_axes(self) -> tuple[int, ...]:
        """The spatial axes along which the kernel is larger than 1."""
        return tuple(axis for axis, size in enumerate(self.kernel_size) if size > 1)

    @property
    def pointwise_axes(self) -> tuple[int, ...]:
        """The spatial axes along which the kernel has size 1."""
        return tuple(axis for axis, size in enumerate(self.kernel_size) if size == 1)

    def modes(self, axes: Axes) -> tuple[int, ...]:
        """What a decomposition sees: (out / groups, in / groups, *spatial), one spatial mode for every entry of `axes`.

        Args:
            axes: which spatial axes make up each spatial mode; those of size 1 are left out.
        """
        return (*self.kernel_shape[:2], *(math.prod(self.kernel_size[axis] for axis in group) for group in axes))

    def arranged(self, weight: Tensor, axes: Axes) -> Tensor:
        """A module's weight as (groups, *modes): its groups apart, its spatial axes in the order of `axes`."""
        order = [axis for group in axes for axis in group] + list(self.pointwise_axes)
        kernels = self.to_kernels(weight).permute(0, 1, 2, *(3 + axis for axis in order))
        return kernels.reshape(self.groups, *self.modes(axes))

    @property
    def numel(self) -> int:
        """The parameters of the dense weight, all groups together."""
        return self.groups * math.prod(self.kernel_shape)

    @property
    def input_first(self) -> bool:
        """Whether the module's weight is (in, out / groups, *kernel_size), not (out, in / groups, *kernel_size)."""
        return self.transposed or self.adapter.input_first

    def to_kernels(self, weight: Tensor) -> Tensor:
        """A module's weight as its groups' kernels, (groups, out / groups, in / groups, *kernel_size)."""
        kernels = weight.reshape(self.groups, -1, *weight.shape[1:])
        return kernels.transpose(1, 2) if self.input_first else kernels

    def to_weight(self, kernels: Tensor) -> Tensor:
        """The groups' kernels, (groups, out / groups, in / groups, *kernel_size), as a module's weight."""
        return (kernels.transpose(1, 2) if self.input_first else kernels).flatten(0, 1)

    def stage(self, in_channels: int, out_channels: int, axes: Sequence[int], *, groups: int) -> ConvSpec:
        """The part of this convolution that works along `axes` alone, without bias.

        Args:
            in_channels: what the stage reads.
            out_channels: what the stage writes.
            axes: the spatial axes on which the stage has this convolution's kernel size, stride, padding,
                dilation and output padding; along the others it is pointwise.
            groups: the stage's own groups.
        """

        def along(values: Sequence[int], neutral: int) -> tuple[int, ...]:
            return tuple(value if axis in axes else neutral for axis, value in enumerate(values))

        size, stride, extra = along(self.kernel_size, 1), along(self.stride, 1), along(self.output_padding, 0)
        padding = self.padding if isinstance(self.padding, str) else along(self.padding, 0)
        pads = len(axes) > 0 if isinstance(padding, str) else any(padding)
        return ConvSpec(
            in_channels,
            out_channels,
            kernel_size=size,
            stride=stride,
            padding=padding if pads else tuple(0 for _ in size),
            dilation=along(self.dilation, 1),
            groups=groups,
            # A mode without padding would still cost a copy of the input.
            padding_mode=self.padding_mode if pads else "zeros",
            has_bias=False,
            # A pointwise stage is the same transposed or not, and faster if it is not.
            transposed=self.transposed and (pads or any(extra) or any(n > 1 for n in (*size, *stride))),
            output_padding=extra,
        )

    def with_bias(self, has_bias: bool) -> ConvSpec:
        """The same convolution with or without a bias."""
        return replace(self, has_bias=has_bias)

    def build(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
        """A plain module of these arguments with its own initial weights."""
        with nullcontext() if device is None else torch.device(device):
            layer = self.adapter.build(self)
        return layer if dtype is None else layer.to(dtype)


def stage_name(axes: tuple[int, ...]) -> str:
    """What a stage along some spatial axes is called: `"axis0"`, `"axis01"`."""
    return "axis" + "".join(map(str, axes))
