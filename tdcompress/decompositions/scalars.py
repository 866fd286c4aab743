"""Numbers that are computed beside tensors, such as a sweep's error, and choices by them.

On the CPU they are Python's own, ten times as fast as operations on tensors of one element. Elsewhere they stay on the
tensor's device, for reading them would make it wait.
"""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor

Number = Tensor | float  # a Tensor has one element
Choice = Tensor | bool


def scalar(value: Tensor) -> Number:
    """The only element of a tensor."""
    return value.item() if value.is_cpu else value


@overload
def either(condition: Choice, one: Tensor, other: Tensor) -> Tensor: ...
@overload
def either(condition: Choice, one: Number, other: Number) -> Number: ...
def either(condition: Choice, one: Any, other: Any) -> Any:
    """`one` or `other`, which on the CPU is not copied."""
    if isinstance(condition, Tensor) and not condition.is_cpu:
        return torch.where(condition, one, other)
    return one if condition else other


def relative_distance(square: Number, inner: Number, model: Number) -> Number:
    """‖tensor − approximation‖ / ‖tensor‖ from ‖tensor‖², the inner product of the two, and ‖approximation‖²."""
    distance = square - 2 * inner + model
    return (either(distance < 0, 0 * distance, distance) / square) ** 0.5
