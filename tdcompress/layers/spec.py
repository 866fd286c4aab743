"""What a layer is, without its weights: the arguments that a factorized one has to keep.

A linear layer is the convolution that has no spatial axes: its kernel size, stride and padding are empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.errors import CompressionError

Axes = tuple[tuple[int, ...], ...]  # the spatial axes that each spatial stage works along, in order
Convolution = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
)

# By the number of spatial axes, and whether the convolution is transposed.
KINDS: dict[tuple[int, bool], type[Convolution]] = {
    (0, False): nn.Linear,
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}


@dataclass(frozen=True)
class ConvSpec:
    """The arguments of an `nn.Conv1d` to `nn.Conv3d`, an `nn.ConvTranspose1d` to `3d`, or an `nn.Linear`.

    All fields are numbers, words and tuples of numbers.

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
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.output_padding:
            object.__setattr__(self, "output_padding", tuple(0 for _ in self.kernel_size))

    @classmethod
    def of(cls, layer: nn.Module) -> ConvSpec:
        """The arguments of `layer`.

        Raises:
            CompressionError: `layer` is not exactly one of the kinds that can be factorized.
        """
        return cls.read(as_convolution(layer))

    @classmethod
    def read(cls, conv: Any) -> ConvSpec:
        """What the attributes of `conv` say, whatever its forward does: also for a subclass or a parametrized one."""
        if isinstance(conv, nn.Linear):
            return cls(conv.in_features, conv.out_features, (), (), (), (), has_bias=conv.bias is not None)
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
            transposed=conv.transposed,
            output_padding=tuple(conv.output_padding),
        )

    @property
    def kind(self) -> type[Convolution]:
        """The module's class."""
        return KINDS[len(self.kernel_size), self.transposed]

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

    def to_kernels(self, weight: Tensor) -> Tensor:
        """A module's weight as its groups' kernels, (groups, out / groups, in / groups, *kernel_size)."""
        kernels = weight.reshape(self.groups, -1, *weight.shape[1:])
        return kernels.transpose(1, 2) if self.transposed else kernels

    def to_weight(self, kernels: Tensor) -> Tensor:
        """The groups' kernels, (groups, out / groups, in / groups, *kernel_size), as a module's weight."""
        return (kernels.transpose(1, 2) if self.transposed else kernels).flatten(0, 1)

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

    def build(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Convolution:
        """A plain module of these arguments with PyTorch's own initial weights."""
        spatial: dict[str, Any] = {}
        if self.kernel_size:
            spatial = {"kernel_size": self.kernel_size, "stride": self.stride, "padding": self.padding}
            spatial |= {"dilation": self.dilation, "groups": self.groups, "padding_mode": self.padding_mode}
        if self.transposed:
            spatial["output_padding"] = self.output_padding
        return self.kind(self.in_channels, self.out_channels, bias=self.has_bias, device=device, dtype=dtype, **spatial)


def stage_name(axes: tuple[int, ...]) -> str:
    """What a stage along some spatial axes is called: `"axis0"`, `"axis01"`."""
    return "axis" + "".join(map(str, axes))


def is_convolution(module: nn.Module) -> bool:
    """Whether `module` is exactly one of the kinds that can be factorized."""
    return type(module) in KINDS.values()


def plain_class(module: nn.Module) -> type[Convolution] | None:
    """The kind that can be factorized which `module` is or derives from; None if there is none."""
    return next((kind for kind in KINDS.values() if isinstance(module, kind)), None)


def as_convolution(module: nn.Module) -> Convolution:
    """`module`, if it can be replaced without changing what the model does.

    Raises:
        CompressionError: no plain convolution or linear layer, or one that carries hooks or parametrizations.
    """
    if not is_convolution(module):
        raise CompressionError(_why_not(module))
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, kind) for kind in kinds):
        raise CompressionError(
            "it carries forward or backward hooks (weight_norm, spectral_norm and pruning are such), which would be "
            "lost; remove them first, or use decompose(…, hooks='keep', parametrized='bake')."
        )
    return module  # type: ignore[return-value]


def _why_not(module: nn.Module) -> str:
    kind, parent = type(module).__name__, plain_class(module)
    if nn.utils.parametrize.is_parametrized(module):
        return (
            f"its {', '.join(module.parametrizations)} is parametrized; remove that first, or use "  # type: ignore
            "decompose(…, parametrized='bake')."
        )
    if parent is not None:
        return (
            f"{kind} is a subclass of {parent.__name__} whose forward may differ; use a plain {parent.__name__} if it "
            "does not, or decompose(…, allow_subclasses=True)."
        )
    return f"{kind} cannot be factorized; {', '.join(known.__name__ for known in KINDS.values())} can."
