"""A ratio as a budget of parameters, what a rank costs of it, and the rank that tensorly-torch would take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from numbers import Rational, Real

from tdcompress.decompositions import cp_limit
from tdcompress.decompositions.bridge import rule
from tdcompress.errors import CompressionError

Rank = tuple[int, ...]


def kept_share(ratio: float) -> Fraction:
    """The share that is kept when `ratio` is removed, exact in decimal: of 0.9 a tenth.

    Args:
        ratio: the share to remove, in (0, 1). It is taken as it prints, since `1 - 0.9` in binary is below a tenth.

    Raises:
        CompressionError: `ratio` is no number in (0, 1).

    >>> kept_share(0.9), 1 - 0.9 < 0.1
    (Fraction(1, 10), True)
    """
    if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 < ratio < 1:
        raise CompressionError(
            f"ratio must be between 0 and 1, got {ratio!r}; it is the share of the parameters to remove, "
            "so ratio=0.9 keeps a tenth."
        )
    return 1 - (Fraction(ratio) if isinstance(ratio, Rational) else Fraction(str(ratio)))


def parameter_budget(numel: int, ratio: float) -> int:
    """The most parameters that a weight may keep: the whole ones in its `kept_share`.

    Args:
        numel: the parameters of the weight.
        ratio: the share to remove, in (0, 1).

    Raises:
        CompressionError: `ratio` is no number in (0, 1).

    >>> parameter_budget(36864, 0.9), parameter_budget(1000, 0.9)
    (3686, 100)
    """
    return math.floor(kept_share(ratio) * numel)


def tensorly_torch_rank(method: str, kernel_shape: Sequence[int], ratio: float) -> Rank:
    """The rank that tensorly-torch would take for `ratio`: the paper's rule, proportional to the shape.

    Args:
        method: `"cp"`, `"tucker"` or `"tt"`.
        kernel_shape: (out, in / groups, *kernel_size), spatial sizes of 1 included.
        ratio: the share of the parameters to remove. The rule rounds, so it may keep a little more than
            asked; for the tensor train it keeps far less.

    >>> tensorly_torch_rank("cp", (64, 64, 3, 3), 0.9), tensorly_torch_rank("tucker", (64, 64, 3, 3), 0.9)
    ((28,), (14, 14))
    """
    parameter_budget(math.prod(kernel_shape), ratio)  # for its check of the ratio
    return rule(method, kernel_shape, 1 - ratio)


def cp_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a CP decomposition: one vector a mode and term.

    >>> cp_parameters((64, 64, 3, 3), (28,))
    3752
    """
    return rank[0] * sum(modes)


def tucker_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a Tucker decomposition with whole spatial modes, `rank` = (out, in).

    >>> tucker_parameters((64, 64, 3, 3), (14, 14))
    3556
    """
    return modes[0] * rank[0] + modes[1] * rank[1] + rank[0] * rank[1] * math.prod(modes[2:])


def svd_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a truncated SVD, `modes` = (out, in, first, second): the kernel's size in either of two stages.

    >>> svd_parameters((64, 64, 9, 1), (5,)), svd_parameters((64, 64, 3, 3), (5,))
    (3200, 1920)
    """
    out, inner, first, second = modes
    return rank[0] * (inner * first + second * out)


def tt_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a tensor train over (in, *spatial, out), `rank` = the inner ranks.

    >>> tt_parameters((64, 64, 3, 3), (40, 4, 12))
    3952
    """
    sizes = (modes[1], *modes[2:], modes[0])
    return sum(left * size * right for left, size, right in zip((1, *rank), sizes, (*rank, 1), strict=True))


def cp_ranks(modes: Sequence[int], budget: int) -> list[Rank]:
    """The largest CP rank within `budget` parameters; none if none fits.

    >>> cp_ranks((64, 64, 3, 3), 3686)
    [(27,)]
    """
    rank = min(budget // sum(modes), cp_limit(modes))
    return [(rank,)] if rank else []


def svd_ranks(modes: Sequence[int], budget: int) -> list[Rank]:
    """The largest rank of a truncated SVD within `budget` parameters; none if none fits.

    >>> svd_ranks((64, 64, 3, 3), 3686)
    [(9,)]
    """
    out, inner, first, second = modes
    rank = min(budget // svd_parameters(modes, (1,)), inner * first, second * out)
    return [(rank,)] if rank else []


def grown(rank: Rank, useful: Callable[[Rank], bool]) -> Rank:
    """Raise single ranks, lowest first, until no further step is useful."""
    while True:
        steps = [tuple(r + (i == j) for j, r in enumerate(rank)) for i in range(len(rank))]
        steps = [step for step in steps if useful(step)]
        if not steps:
            return rank
        rank = min(steps, key=max)
