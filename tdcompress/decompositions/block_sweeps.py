"""Alternating least squares over block terms: where the sweeps begin, and one sweep.

A factor is stored as rows, (blocks, r, size): one contiguous vector for every column of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import add_to_diagonal, solve_nearby
from tdcompress.decompositions.orthogonal import OrthogonalTerms
from tdcompress.decompositions.scalars import Number, relative_distance, scalar

_DAMPING = 1e-6  # of the mean squared length, where the vectors of a block are made orthonormal
_DIRECT = 600  # rows of cores up to which their normal equations are solved by a Cholesky factorization,
_STEPS = 5  # and beyond which so many steps of conjugate gradients are made


def orthogonal_blocks(tensor: Tensor, rank: Sequence[int]) -> list[Tensor]:
    """The largest of mutually orthogonal rank-one terms on the diagonals of the blocks.

    A block that is wider one way than the other has vectors of further terms there, which its core does not use yet.
    """
    blocks, first, second = rank
    order = sorted(range(3), key=lambda mode: -tensor.shape[mode])
    terms = OrthogonalTerms(tensor.permute(order))
    wanted, there = blocks * max(first, second), len(terms.lost) - 1
    rows = terms.rows(min(wanted, there))
    places = torch.arange(wanted, device=tensor.device).view(-1, blocks).mT  # (blocks, terms of one)
    left, right, profiles = (rows[order.index(mode)][places % there] for mode in range(3))
    profiles = torch.where((places < there)[..., None], profiles, 0.0)  # every term once
    cores = tensor.new_zeros(*rank, tensor.shape[2])
    for place in range(min(first, second)):
        cores[:, place, place] = profiles[:, place]
    return [left[:, :first], right[:, :second], cores]


def is_solved_directly(rank: Sequence[int]) -> bool:
    """Whether cores of this (blocks, r_0, r_1), in whichever order, are solved for by a factorization.

    Blocks of size 1 always are: they are CP's terms, and where these are nearly collinear a few steps get nowhere.
    """
    return math.prod(rank) <= _DIRECT or math.prod(rank[1:]) == 1


def work_of_cores(rank: Sequence[int], positions: int) -> float:
    """Multiplications of one update of the cores."""
    rows = math.prod(rank)
    if is_solved_directly(rank):
        return rows**3 / 3 + rows**2 * positions
    return _STEPS * rows**2 * positions * sum(1 / size for size in rank[1:])


class BlockSweep:
    """One update of every factor by least squares.

    What is minimized is ‖tensor − approximation‖² + penalty · Σ ‖block‖². Factors are (blocks, r, size).

    Args:
        tensor: shape (I_0, I_1, positions).
        penalty: of the blocks' squared lengths.
    """

    def __init__(self, tensor: Tensor, penalty: float = 0.0) -> None:
        self.tensor, self.penalty = tensor, penalty
        self.by_first, self.by_second = tensor.flatten(1), tensor.transpose(0, 1).flatten(1)
        self.square = scalar(tensor.double().square().sum())

    def in_double(self) -> BlockSweep:
        """The same sweep in float64."""
        return BlockSweep(self.tensor.double(), self.penalty)

    def __call__(self, factors: Sequence[Tensor]) -> tuple[list[Tensor], Number, Number]:
        """The swept factors, balanced, their relative error, and Σ ‖block‖² over ‖tensor‖²."""
        left, right, cores = factors
        partial = _contracted(self.by_second, right, self.tensor.shape[0])
        left = self._solved(torch.bmm(cores.flatten(2), partial.mT), _normal(cores, right), left)
        left, cores = _orthonormal(left, cores)
        turned = cores.transpose(1, 2)
        partial = _contracted(self.by_first, left, self.tensor.shape[1])
        right = self._solved(torch.bmm(turned.flatten(2), partial.mT), _normal(turned, left), right)
        right, turned = _orthonormal(right, turned)
        product = torch.bmm(right, partial).view(turned.shape)  # (blocks, r_1, r_0, positions)
        pairs = _Pairs(right, left)
        turned, image, own = self._solved_cores(product, pairs, turned)
        inner, model, length = (scalar((turned.double() * one.double()).sum()) for one in (product, image, own))
        error = relative_distance(self.square, inner, model)
        return balanced_blocks(left, right, turned.transpose(1, 2)), error, length / self.square

    def _solved(self, product: Tensor, normal: Tensor, previous: Tensor) -> Tensor:
        """Rows near the previous ones, all (blocks, rows of one, columns), for the normal equations of all rows."""
        penalized = normal.clone()
        own = _blocks_of(penalized, len(product))
        own += self.penalty * own
        rows = solve_nearby(penalized, product.flatten(0, 1), previous.flatten(0, 1))
        return rows.view(product.shape)

    def _solved_cores(self, product: Tensor, pairs: _Pairs, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The cores (blocks, r_1, r_0, positions), and what the equations and their diagonal blocks make of them.

        Solved for exactly, or where there are many rows by some steps towards that.
        """
        if is_solved_directly(pairs.shape):
            normal = pairs.dense()
            cores = self._solved(product.flatten(1, 2), normal, previous.flatten(1, 2))
            image, own = normal @ cores.flatten(0, 1), torch.bmm(_blocks_of(normal, len(cores)), cores)
            return cores.view(product.shape), image.view(product.shape), own.view(product.shape)

        def penalized(cores: Tensor) -> Tensor:
            return pairs.times(cores) + self.penalty * pairs.own(cores)

        cores = _conjugate_gradients(penalized, product, previous)
        return cores, pairs.times(cores), pairs.own(cores)


class _Pairs:
    """The normal equations of the cores: inner products of all pairs of vectors that a core stands between.

    Those of the pairs (q, p) of block b and (t, s) of block c are `one[b, q] · one[c, t]` times
    `other[b, p] · other[c, s]`, so the equations can be applied without being written down.

    Args:
        one: rows (blocks, r_1, I_1).
        other: rows (blocks, r_0, I_0).

    Attributes:
        shape: (blocks, r_1, r_0).
    """

    def __init__(self, one: Tensor, other: Tensor) -> None:
        self.shape = (len(one), one.shape[1], other.shape[1])
        self._one, self._other = (rows.flatten(0, 1) @ rows.flatten(0, 1).mT for rows in (one, other))

    def dense(self) -> Tensor:
        """The matrix of all inner products."""
        blocks, one, other = self.shape
        product = self._one.view(blocks, one, 1, blocks, one, 1) * self._other.view(blocks, 1, other, blocks, 1, other)
        return product.flatten(3).flatten(0, 2)

    def times(self, cores: Tensor) -> Tensor:
        """The matrix against cores (blocks, r_1, r_0, positions)."""
        blocks, one, other = self.shape
        spread = self._other.view(-1, blocks, other).transpose(0, 1)  # (blocks, all of other, r_0)
        partial = torch.bmm(spread, cores.transpose(1, 2).flatten(2)).view(blocks, blocks, other, one, -1)
        partial = partial.permute(1, 0, 3, 2, 4).reshape(blocks, blocks * one, -1)
        return torch.bmm(self._one.view(blocks, one, -1), partial).view(cores.shape)

    def own(self, cores: Tensor) -> Tensor:
        """The blocks on the matrix's diagonal against cores."""
        blocks = self.shape[0]
        one, other = (_blocks_of(gram, blocks) for gram in (self._one, self._other))
        return torch.einsum("bqt,btsk,bps->bqpk", one, cores, other)


def _conjugate_gradients(times: Callable[[Tensor], Tensor], product: Tensor, start: Tensor) -> Tensor:
    """Some steps from `start` towards the solution of `times(x) = product`; the quadratic form falls with each.

    The vectors of a block are orthonormal, so the blocks on the diagonal are the identity already and the equations
    need no preconditioner.
    """
    tiny = torch.finfo(product.dtype).tiny
    solution, residual = start, product - times(start)
    direction, square = residual, residual.square().sum()
    for _ in range(_STEPS):
        image = times(direction)
        length = square / (direction * image).sum().clamp(min=tiny)
        solution, residual = solution + length * direction, residual - length * image
        before, square = square, residual.square().sum()
        direction = residual + square / before.clamp(min=tiny) * direction
    return solution


def _contracted(matrix: Tensor, rows: Tensor, size: int) -> Tensor:
    """A matrix (columns, size · positions) against rows (blocks, r, columns): (blocks, size, r · positions)."""
    blocks, count, _ = rows.shape
    return (rows.flatten(0, 1) @ matrix).view(blocks, count, size, -1).transpose(1, 2).flatten(2)


def _normal(cores: Tensor, rows: Tensor) -> Tensor:
    """The inner products of `cores[b] ×_2 rows[b]`, (blocks, p, q, positions) and (blocks, q, size): (bp, bp)."""
    blocks, first, second, positions = cores.shape
    if first == second == 1:
        return (cores.flatten(1) @ cores.flatten(1).mT) * (rows.flatten(1) @ rows.flatten(1).mT)
    products = torch.einsum("bqi,csi->cbqs", rows, rows).flatten(1, 2)  # (blocks, blocks · q, q)
    spread = torch.bmm(products, cores.transpose(1, 2).flatten(2))  # (blocks, blocks · q, p · positions)
    spread = spread.view(blocks, blocks, second, first, positions).permute(1, 2, 4, 0, 3)
    inner = torch.bmm(cores.flatten(2), spread.reshape(blocks, second * positions, blocks * first))
    return inner.flatten(0, 1)


def _blocks_of(normal: Tensor, blocks: int) -> Tensor:
    """The blocks on the diagonal: (blocks, rows of one, rows of one)."""
    size = len(normal) // blocks
    return normal.view(blocks, size, blocks, size).diagonal(dim1=0, dim2=2).movedim(-1, 0)


def _orthonormal(rows: Tensor, cores: Tensor) -> tuple[Tensor, Tensor]:
    """The same blocks with the rows of each orthonormal, and all length in the cores."""
    gram = rows @ rows.mT
    lengths = gram.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    damping = (_DAMPING / rows.shape[1] * lengths).clamp(min=torch.finfo(rows.dtype).tiny)
    root, _ = torch.linalg.cholesky_ex(add_to_diagonal(gram, damping))
    return torch.linalg.solve_triangular(root, rows, upper=False), (root.mT @ cores.flatten(2)).view(cores.shape)


def balanced_blocks(left: Tensor, right: Tensor, cores: Tensor) -> list[Tensor]:
    """The same blocks with as much length in either factor as in the core; a vanished block stays zero."""
    factors = (left, right, cores)
    lengths = torch.stack([torch.linalg.vector_norm(factor.flatten(1), dim=1) for factor in factors])
    goal = lengths.log().mean(0).exp()
    scale = torch.where(lengths > 0, goal / lengths, 0.0)
    return [factor * share.view(-1, *[1] * (factor.ndim - 1)) for factor, share in zip(factors, scale, strict=True)]
