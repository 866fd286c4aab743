"""Errors of the weights: how far the kernel that a layer stands for is from the original one."""

from __future__ import annotations

import torch
from torch import Tensor

from tdcompress.metrics.registry import register_metric


@register_metric("absolute_weights", on="weights")
def absolute_weights(original: Tensor, approximation: Tensor) -> Tensor:
    """‖W − W̃‖ in the Frobenius norm.

    >>> float(absolute_weights(torch.ones(2, 2), torch.zeros(2, 2)))
    2.0
    """
    return torch.linalg.vector_norm(original - approximation)


@register_metric("relative_weights", on="weights")
def relative_weights(original: Tensor, approximation: Tensor) -> Tensor:
    """‖W − W̃‖ / ‖W‖; 0 where a zero kernel is met exactly.

    >>> float(relative_weights(torch.ones(2, 2), torch.zeros(2, 2)))
    1.0
    """
    return ratio(absolute_weights(original, approximation), torch.linalg.vector_norm(original))


@register_metric("scaled_weights", on="weights")
def scaled_weights(original: Tensor, approximation: Tensor) -> Tensor:
    """‖W − W̃‖ / n, n the number of elements of W.

    >>> float(scaled_weights(torch.ones(2, 2), torch.zeros(2, 2)))
    0.5
    """
    return absolute_weights(original, approximation) / original.numel()


def ratio(error: Tensor, size: Tensor) -> Tensor:
    """`error / size`, with 0 / 0 = 0: nothing was lost of nothing."""
    return torch.where(error == 0, torch.zeros_like(error), error / size)
