"""Values as a layer's parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def parameter(values: Tensor, *, like: Tensor) -> nn.Parameter:
    """`values` as a parameter with the memory format and the requires_grad of `like`."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = formats.get(values.ndim, torch.contiguous_format)
    # Not contiguous(): where a size is 1 that keeps strides which PyTorch takes for those of the other format.
    values = values.clone(memory_format=torch.contiguous_format)
    # The strides tell, not `is_contiguous` alone: a pointwise weight is contiguous in either format.
    if like.stride(-1) != 1 and like.is_contiguous(memory_format=layout):
        values = torch.empty_like(values, memory_format=layout).copy_(values)
    return nn.Parameter(values, requires_grad=like.requires_grad)
