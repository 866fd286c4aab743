"""Errors of the features: how far a layer's output is from the original one's, on the same input."""

from __future__ import annotations

import torch
from torch import Tensor

from tdcompress.metrics.registry import register_metric
from tdcompress.metrics.weights import ratio


@register_metric("absolute_features", on="features")
def absolute_features(original: Tensor, approximation: Tensor) -> Tensor:
    """‖F − F̃‖ of every sample.

    >>> absolute_features(torch.ones(3, 4), torch.zeros(3, 4)).tolist()
    [2.0, 2.0, 2.0]
    """
    return torch.linalg.vector_norm((original - approximation).flatten(1), dim=1)


@register_metric("relative_features", on="features")
def relative_features(original: Tensor, approximation: Tensor) -> Tensor:
    """‖F − F̃‖ / ‖F‖ of every sample; 0 where a zero output is met exactly.

    >>> relative_features(torch.ones(3, 4), torch.zeros(3, 4)).tolist()
    [1.0, 1.0, 1.0]
    """
    size = torch.linalg.vector_norm(original.flatten(1), dim=1)
    return ratio(absolute_features(original, approximation), size)


@register_metric("scaled_features", on="features")
def scaled_features(original: Tensor, approximation: Tensor) -> Tensor:
    """‖F − F̃‖ / n of every sample, n the number of elements of its output.

    >>> scaled_features(torch.ones(3, 4), torch.zeros(3, 4)).tolist()
    [0.5, 0.5, 0.5]
    """
    return absolute_features(original, approximation) / original[0].numel()
