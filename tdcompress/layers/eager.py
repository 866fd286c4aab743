"""How a stack runs on a CPU where nobody looks at its stages: the same function, with less to read and to write."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module

from tdcompress.layers.arranging import MethodOptions
from tdcompress.layers.method import Factors
from tdcompress.layers.reshapes import Regroup
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.stacked import StackedConv

_MERGING = 2  # at most so many times the multiply-adds, for not writing and reading what goes between two stages
_POSITIONS = 128  # fewer in a call: no time is spent on memory; fewer in a sample: too little for a product of its own
_PLAIN = (nn.Conv2d, nn.Conv3d, Regroup)
_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {2: F.conv2d, 3: F.conv3d}


class EagerStack(StackedConv[Factors, MethodOptions]):
    """A stack of stages that need not run one by one.

    What a stack costs beyond its arithmetic is memory. oneDNN wants the channels together, so every stage of a
    contiguous image is preceded and followed by a copy of all that it reads and writes; and what goes between two
    stages in the middle may be several times as large as the input. So, for plain images on a CPU:

    - What is between the first and the last stage is one convolution where the method knows its weight
      (`middle_weight`).
    - Between the ends the channels are together. The pointwise ends write and read them so while they multiply: with X
      (channels, positions) of one sample, the first stage gives Xᵀ Wᵀ, (positions, channels), and the last W Yᵀ. Where
      samples are too small for that, or gradients are wanted, one side of the stage is copied instead.

    Compilers, exporters and tracers get the plain stages, and do the like themselves. So does a stack of which a stage
    is hooked, parametrized, quantized or replaced: it is run as what it is.
    """

    def forward(self, input: Tensor) -> Tensor:
        """What the stages give, one after the other."""
        if not self._is_free(input):
            for stage in self:
                input = stage(input)
            return input
        first, *between, last = self
        together = input.stride(1) == 1 and input.shape[1] > 1
        values = first(input) if together else _first(first, input)
        with torch.autocast("cpu", enabled=False):  # a product of rounded factors would be rounded twice
            weight = self.middle_weight()
        if weight is None:
            for stage in between:
                values = stage(values)
        else:
            values = self._middle(values, weight)
        return last(values) if together else _last(last, values)

    def middle_weight(self) -> Tensor | None:
        """The weight of one convolution that does what all between the first and the last stage do, if that pays.

        It is computed from theirs, differentiably.

        Returns:
            (channels of the last stage, channels of the first in a group, *kernel_size), for one slice where all have
            the same; None if they run one by one.
        """
        return None

    def _middle(self, values: Tensor, weight: Tensor) -> Tensor:
        channels = values.shape[1]
        part = self.spec.stage(channels, len(weight), self.spec.kernel_axes, groups=channels // weight.shape[1])
        return convolved(values, weight, part)

    def _is_worth_merging(self, together: int, apart: int) -> bool:
        """Whether the stages in the middle run faster as one.

        Args:
            together: multiply-adds at a position of that one.
            apart: those of the stages.
        """
        return self.spec.padding_mode == "zeros" and together <= _MERGING * apart

    def _is_free(self, inputs: Tensor) -> bool:
        """Whether the stages may run otherwise than one by one."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(inputs) is not Tensor:  # type: ignore[attr-defined, no-untyped-call]
            return False
        spatial, channels = len(self.spec.kernel_size), self.spec.in_channels
        if not inputs.is_cpu or spatial not in _CONVOLUTIONS or inputs.ndim != spatial + 2 or len(self.weighted) < 3:
            return False
        if inputs.shape[1] != channels or inputs.numel() < _POSITIONS * channels:
            return False  # wrong channels: PyTorch has a message for them
        first, *_, last = self
        if isinstance(first, Regroup) or isinstance(last, Regroup):
            return False  # a matrix read through a grid
        return not _are_all_hooked() and all(map(_is_untouched, self))


def convolved(values: Tensor, weight: Tensor, part: ConvSpec) -> Tensor:
    """Images convolved with a weight, as `part` says."""
    convolve = _CONVOLUTIONS[len(part.kernel_size)]
    return convolve(values, weight, None, part.stride, part.padding, part.dilation, part.groups)


def _are_all_hooked() -> bool:
    """Whether there are hooks for every module. PyTorch's own function for that is younger than 2.6."""
    forward = module._global_forward_hooks or module._global_forward_pre_hooks
    return bool(forward or module._global_backward_hooks or module._global_backward_pre_hooks)


def _is_untouched(stage: nn.Module) -> bool:
    hooked = stage._forward_hooks or stage._forward_pre_hooks or stage._backward_hooks or stage._backward_pre_hooks
    return type(stage) in _PLAIN and not hooked and "forward" not in vars(stage)


def _first(stage: Any, inputs: Tensor) -> Tensor:
    """The first stage of images whose channels lie apart; the result's lie together."""
    if not _is_product(stage, inputs):
        if _is_less(stage.out_channels, stage.in_channels, inputs):
            return _together(stage(inputs))
        return torch.as_tensor(stage(_together(inputs)))
    weight = stage.weight.flatten(1).mT.expand(len(inputs), -1, -1)
    rows = inputs.flatten(2).mT
    values = torch.bmm(rows, weight) if stage.bias is None else torch.baddbmm(stage.bias, rows, weight)
    return values.reshape(len(inputs), *inputs.shape[2:], -1).movedim(-1, 1)


def _last(stage: Any, inputs: Tensor) -> Tensor:
    """The last stage of images whose channels lie together; the result's lie apart."""
    if not _is_product(stage, inputs):
        if _is_less(stage.in_channels, stage.out_channels, inputs):
            inputs = inputs.contiguous()
        return torch.as_tensor(stage(inputs).contiguous())
    weight = stage.weight.flatten(1).expand(len(inputs), -1, -1)
    columns = inputs.movedim(1, -1).flatten(1, -2).mT
    values = torch.bmm(weight, columns) if stage.bias is None else torch.baddbmm(stage.bias[:, None], weight, columns)
    return values.reshape(len(inputs), -1, *inputs.shape[2:])


def _together(values: Tensor) -> Tensor:
    """The same values, with the channels together."""
    return values.movedim(1, -1).contiguous().movedim(-1, 1)


def _is_less(inside: int, outside: int, inputs: Tensor) -> bool:
    """Whether what has the inner channels is better copied than what has the outer ones.

    It is less, and on few positions the convolution itself takes about as long in either format.
    """
    return inside < outside and math.prod(inputs.shape[2:]) < _POSITIONS


def _is_product(stage: Any, inputs: Tensor) -> bool:
    """Whether the stage is best a matrix product a sample: pointwise, on many positions, and without gradients.

    Backwards, a gradient of the matrix would be held for every sample.
    """
    pointwise = max(*stage.kernel_size, *stage.stride, stage.groups) == 1 and not any(stage.padding)
    return pointwise and math.prod(inputs.shape[2:]) >= _POSITIONS and not torch.is_grad_enabled()
