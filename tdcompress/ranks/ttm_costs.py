"""What a tensor-train matrix costs: parameters, and the multiply-adds of a row of inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tdcompress.decompositions.reshape import Reshape


def ttm_parameters(reshape: Reshape, rank: Sequence[int]) -> int:
    """Parameters of a tensor-train matrix, `rank` = the inner ranks.

    >>> ttm_parameters(Reshape((4, 8, 8), (4, 4, 16)), (3, 5))
    1168
    """
    return sum(left * size * right for left, size, right in zip((1, *rank), reshape.sizes, (*rank, 1), strict=True))


def ttm_multiply_adds(reshape: Reshape, rank: Sequence[int]) -> int:
    """Multiply-adds of one row of inputs: core by core from the last, or from the first if that is cheaper.

    >>> ttm_multiply_adds(Reshape((4, 8, 8), (4, 4, 16)), (3, 5)), 256 * 256
    (28672, 65536)
    """
    return min(_multiply_adds_from_ends(reshape, rank))


def is_cheaper_from_last(reshape: Reshape, rank: Sequence[int]) -> bool:
    """Whether to multiply by the last core first takes no more multiply-adds than by the first.

    >>> is_cheaper_from_last(Reshape((4, 8, 8), (4, 4, 16)), (3, 5))
    True
    """
    last, first = _multiply_adds_from_ends(reshape, rank)
    return last <= first


def _multiply_adds_from_ends(reshape: Reshape, rank: Sequence[int]) -> tuple[int, int]:
    """From the last core to the first, and from the first to the last."""
    turned = Reshape(reshape.rows[::-1], reshape.columns[::-1])
    return _multiply_adds_from_last(reshape, rank), _multiply_adds_from_last(turned, rank[::-1])


def _multiply_adds_from_last(reshape: Reshape, rank: Sequence[int]) -> int:
    bonds, total = (1, *rank, 1), 0
    for core, size in enumerate(reshape.sizes):
        others = math.prod(reshape.columns[:core]) * math.prod(reshape.rows[core + 1 :])
        total += others * bonds[core] * size * bonds[core + 1]
    return total
