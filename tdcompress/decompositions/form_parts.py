"""What the forms of tensorly's objects share: checks of their parts, and products that are exact."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tdcompress.errors import CompressionError


def product_of_rank(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """`left @ right` as two factors again whose rank is no larger than either side; those given where it was not.

    Args:
        left: shape (rows, rank).
        right: shape (rank, columns).

    >>> [tuple(one.shape) for one in product_of_rank(torch.ones(3, 5), torch.ones(5, 4))]
    [(3, 3), (3, 4)]
    """
    rows, columns = left.shape[0], right.shape[1]
    if left.shape[1] <= min(rows, columns):
        return left, right
    product = left @ right
    return (identity(rows, left), product) if rows <= columns else (product, identity(columns, left))


def identity(size: int, like: Tensor) -> Tensor:
    """Of a precision and a device."""
    return torch.eye(size, dtype=like.dtype, device=like.device)


def check_parts(name: str, tensors: Sequence[Tensor], order: int) -> None:
    """Refuse parts that are not arrays of real floating-point numbers with so many modes.

    Raises:
        CompressionError: they are not.
    """
    if not tensors or any(tensor.ndim != order or not tensor.numel() for tensor in tensors):
        raise CompressionError(f"in a {name} arrays with {order} modes are needed here, got {shapes_of(tensors)}.")
    kinds = {tensor.dtype for tensor in tensors}
    if not all(kind.is_floating_point for kind in kinds):
        raise CompressionError(f"the {name} must be of real floating-point numbers, got {', '.join(map(str, kinds))}.")


def shapes_of(tensors: Sequence[Tensor]) -> str:
    """For a message."""
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "none"
