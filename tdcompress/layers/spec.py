"""What a convolution is, without its weights: the arguments that a factorized one has to keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from tdcompress.errors import CompressionError

Axes = tuple[tuple[int, ...], ...]  # the spatial axes that each spatial stage works along, in order
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

_BY_NDIM: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


@dataclass(frozen=True)
class ConvSpec:
    """The arguments of an `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`.

    Attributes:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: one entry for each spatial axis; their number tells 1d, 2d and 3d apart.
        stride: one entry an axis.
        padding: one entry an axis, or `"same"` or `"valid"`.
        dilation: one entry an axis.
        groups: blocks of channels that do not see each other.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`.
        has_bias: whether a bias is added.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int = 1
    padding_mode: str = "zeros"
    has_bias: bool = True

    @classmethod
    def of(cls, conv: nn.Module) -> ConvSpec:
        """The arguments of `conv`.

        Raises:
            CompressionError: `conv` is not exactly an `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`.
        """
        conv = as_convolution(conv)
        return cls(
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            kernel_size=tuple(conv.kernel_size),
            stride=tuple(conv.stride),
            padding=conv.padding if isinstance(conv.padding, str) else tuple(conv.padding),
            dilation=tuple(conv.dilation),
            groups=conv.groups,
            padding_mode=conv.padding_mode,
            has_bias=conv.bias is not None,
        )

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape of one group's kernel: (out / groups, in / groups, *kernel_size)."""
        return (self.out_channels // self.groups, self.in_channels // self.groups, *self.kernel_size)

    @property
    def long_axes(self) -> tuple[int, ...]:
        """The spatial axes along which the kernel is larger than 1."""
        return tuple(axis for axis, size in enumerate(self.kernel_size) if size > 1)

    @property
    def short_axes(self) -> tuple[int, ...]:
        """The spatial axes along which the kernel has size 1."""
        return tuple(axis for axis, size in enumerate(self.kernel_size) if size == 1)

    def modes(self, axes: Axes) -> tuple[int, ...]:
        """What a decomposition sees: (out / groups, in / groups, *spatial), one spatial mode for every entry of `axes`.

        Args:
            axes: which spatial axes make up each spatial mode; those of size 1 are left out.
        """
        return (*self.kernel_shape[:2], *(math.prod(self.kernel_size[axis] for axis in group) for group in axes))

    @property
    def numel(self) -> int:
        """The parameters of the dense weight, all groups together."""
        return self.groups * math.prod(self.kernel_shape)

    def stage(self, in_channels: int, out_channels: int, axes: Sequence[int], *, groups: int) -> ConvSpec:
        """The part of this convolution that works along `axes` alone, without bias.

        Args:
            in_channels: what the stage reads.
            out_channels: what the stage writes.
            axes: the spatial axes on which the stage has this convolution's kernel size, stride, padding
                and dilation; along the others it is pointwise.
            groups: the stage's own groups.
        """

        def along(values: Sequence[int], neutral: int) -> tuple[int, ...]:
            return tuple(value if axis in axes else neutral for axis, value in enumerate(values))

        padding = self.padding if isinstance(self.padding, str) else along(self.padding, 0)
        pads = len(axes) > 0 if isinstance(padding, str) else any(padding)
        return ConvSpec(
            in_channels,
            out_channels,
            kernel_size=along(self.kernel_size, 1),
            stride=along(self.stride, 1),
            padding=padding if pads else tuple(0 for _ in self.kernel_size),
            dilation=along(self.dilation, 1),
            groups=groups,
            # A mode without padding would still cost a copy of the input.
            padding_mode=self.padding_mode if pads else "zeros",
            has_bias=False,
        )

    def with_bias(self, has_bias: bool) -> ConvSpec:
        """The same convolution with or without a bias."""
        return replace(self, has_bias=has_bias)

    def build(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Convolution:
        """A plain `nn.Conv` of these arguments with PyTorch's own initial weights."""
        return _BY_NDIM[len(self.kernel_size)](
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            groups=self.groups,
            bias=self.has_bias,
            padding_mode=self.padding_mode,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )


def stage_name(axes: tuple[int, ...]) -> str:
    """What a stage along some spatial axes is called: `"axis0"`, `"axis01"`."""
    return "axis" + "".join(map(str, axes))


def is_convolution(module: nn.Module) -> bool:
    """Whether `module` is exactly one of the convolutions that can be factorized."""
    return type(module) in _BY_NDIM.values()


def as_convolution(module: nn.Module) -> Convolution:
    """`module`, if it can be replaced without changing what the model does.

    Raises:
        CompressionError: no plain convolution, or one that carries hooks or parametrizations.
    """
    if not is_convolution(module):
        raise CompressionError(_why_not(module))
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, kind) for kind in kinds):
        raise CompressionError(
            "it carries forward or backward hooks (weight_norm and spectral_norm are such), which the "
            "replacement would lose; remove them, decompose, and register them anew."
        )
    return module  # type: ignore[return-value]


def _why_not(module: nn.Module) -> str:
    kind = type(module).__name__
    if nn.utils.parametrize.is_parametrized(module):
        return (
            f"its {', '.join(module.parametrizations)} is parametrized; bake it in first with "  # type: ignore
            "torch.nn.utils.parametrize.remove_parametrizations."
        )
    parents = [parent.__name__ for parent in _BY_NDIM.values() if isinstance(module, parent)]
    if parents:
        return (
            f"{kind} is a subclass of {parents[0]} whose forward may differ; use a plain {parents[0]} if it does not."
        )
    return f"{kind} is no convolution; {', '.join(known.__name__ for known in _BY_NDIM.values())} can be factorized."
