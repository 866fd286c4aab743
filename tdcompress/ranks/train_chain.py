"""A tensor train over the modes of a kernel: the order of its modes, which ranks can be filled, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

from tdcompress.decompositions import tensor_train_limits
from tdcompress.shapes import Rank


def chain_of(modes: Sequence[int]) -> tuple[int, ...]:
    """The sizes along the train, (in, *spatial, out), of a kernel with modes (out, in, *spatial).

    >>> chain_of((128, 64, 3, 5))
    (64, 3, 5, 128)
    """
    return (*modes[1:], modes[0])


def fills(sizes: Sequence[int], rank: Rank) -> bool:
    """Whether every bond of a train can be filled from both sides: it is at most the next one times the mode between.

    >>> fills((64, 3, 3, 128), (40, 4, 12)), fills((64, 3, 3, 128), (40, 4, 13))
    (False, False)
    >>> fills((64, 3, 3, 128), (12, 5, 15))
    True
    """
    bonds = zip((1, *rank), sizes, (*rank, 1), strict=True)
    return all(left <= size * right and right <= size * left for left, size, right in bonds)


def cut_to_chain(sizes: Sequence[int], rank: Rank) -> Rank:
    """A rank cut to the limits, and along the train to what the bond before can fill.

    >>> cut_to_chain((64, 3, 3, 128), (4, 40, 200))
    (4, 12, 36)
    """
    cut, left = [], 1
    for wanted, limit, size in zip(rank, tensor_train_limits(sizes), sizes, strict=False):
        left = min(wanted, limit, left * size)
        cut.append(left)
    return tuple(cut)


def tt_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a tensor train over (in, *spatial, out), `rank` = the inner ranks.

    >>> tt_parameters((64, 64, 3, 3), (40, 4, 12))
    3952
    """
    return sum(left * size * right for left, size, right in zip((1, *rank), chain_of(modes), (*rank, 1), strict=True))
