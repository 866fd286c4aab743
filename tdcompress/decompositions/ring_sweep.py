"""Alternating least squares for the tensor ring: starts and sweeps.

The tensor is W of shape (in, *middle, out), with K the product of the middle modes. A ring is a sum of r_0 slices,
W ≈ Σ_a U_aᵀ S V_a, with the first core as U (r_0, r_1, in), the last as V (r_0, r_N, out), and the cores between them,
which all slices share, multiplied out as S (r_1, K, r_N). So a sweep takes two products with all of W, as CP's does.
The rest is small where the bonds are far below in and out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import (
    add_to_diagonal,
    chained,
    eigh,
    gram,
    leading_subspace,
    mode_dot,
    solve_nearby,
    unfold,
    unravelled,
)
from tdcompress.decompositions.scalars import Number, relative_distance, scalar
from tdcompress.decompositions.sweeping import Start
from tdcompress.shapes import Rank

_DAMPING = 1e-6  # of the mean squared length, where the rows over a bond are made orthonormal


def ring_start(kind: Start, tensor: Tensor, rank: Rank, generator: torch.Generator) -> list[Tensor]:
    """Where the sweeps begin: U, the cores in the middle, and V, for a tensor (in, *middle, out) and (r_0, …, r_N)."""
    return _random_start(tensor, rank, generator) if kind == "random" else _orthogonal_start(tensor, rank)


def ring_cores(factors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """U, the cores in the middle and V as the cores of a ring, (r_n, I_n, r_{n+1})."""
    first, *middle, last = factors
    return first.transpose(1, 2), *middle, last.permute(1, 2, 0)


def _random_start(tensor: Tensor, rank: Rank, generator: torch.Generator) -> list[Tensor]:
    """Normal random numbers over the root of how many are summed up, drawn on the CPU so that devices start alike."""
    closing, *bonds = rank
    middle = zip(bonds[:-1], tensor.shape[1:-1], bonds[1:], strict=True)
    shapes = [(closing, bonds[0], tensor.shape[0]), *middle, (closing, bonds[-1], tensor.shape[-1])]
    fans = [tensor.shape[0], *bonds[:-1], bonds[-1]]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") for shape in shapes]
    return [(one / math.sqrt(fan)).to(tensor) for one, fan in zip(drawn, fans, strict=True)]


def _orthogonal_start(tensor: Tensor, rank: Rank) -> list[Tensor]:
    """The largest singular triples of the kernel's positions, r_0 of one position after the other on a path of its own.

    The middle modes are rotated onto their principal axes. Through the middle there are as many paths as the smallest
    bond has places; each leads from place p of one bond to place p of the next, through one position. So the triples
    are mutually orthogonal, and the error is known. Places of wider bonds are written to, but not yet read.
    """
    closing, *bonds = rank
    middle = tensor.shape[1:-1]
    rotations = [leading_subspace(unfold(tensor, mode), size).to(tensor) for mode, size in enumerate(middle, start=1)]
    rotated = tensor
    for mode, rotation in enumerate(rotations, start=1):
        rotated = mode_dot(rotated, rotation.mT, mode)
    left, right, energy = _blocks_of_triples(rotated.movedim(0, -2).flatten(0, -3), closing)
    order = energy.flatten().argsort(descending=True, stable=True)
    left, right = left.flatten(0, 1)[order], right.flatten(0, 1)[order]  # (blocks, closing, size)
    paths = min(*bonds, len(order))
    first, last = (tensor.new_zeros(closing, bond, size) for bond, size in zip(
        (bonds[0], bonds[-1]), (tensor.shape[0], tensor.shape[-1]), strict=True))  # fmt: skip
    written = min(bonds[0], len(order))
    first[:, :written], last[:, :paths] = left[:written].transpose(0, 1), right[:paths].transpose(0, 1)
    places, cores = torch.arange(paths, device=tensor.device), []
    positions = unravelled(order[:paths] // energy.shape[1], middle)
    for rotation, position, before, after in zip(rotations, positions, bonds[:-1], bonds[1:], strict=True):
        core = tensor.new_zeros(before, len(rotation), after)
        core[places, :, places] = rotation.mT[position]
        for place in range(paths, after):
            core[place % before, place % len(rotation), place] = 1.0
        cores.append(core)
    return [first, *cores, last]


def _blocks_of_triples(matrices: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The singular triples of (positions, rows, columns) in blocks of `size`, largest first, the last one filled up.

    Returns:
        (positions, blocks, size, rows), (positions, blocks, size, columns), one of them with the triples' lengths, and
        the squared lengths of the blocks, (positions, blocks).
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    short = matrices if wide else matrices.mT
    _, vectors = eigh(gram(short))
    unit = vectors.flip(-1).mT.to(matrices)
    long = unit @ short  # (positions, triples, longer side)
    missing = -unit.shape[1] % size
    unit, long = (
        torch.nn.functional.pad(rows, (0, 0, 0, missing)).view(len(rows), -1, size, rows.shape[2])
        for rows in (unit, long)
    )
    left, right = (unit, long) if wide else (long, unit)
    return left, right, long.double().square().sum((-2, -1))


class RingSweep:
    """One update of every core by least squares.

    What is minimized is ‖tensor − Σ slices‖² + penalty · Σ ‖slice‖². Factors are U, the cores in the middle, and V.

    Args:
        tensor: shape (in, *middle, out), order ≥ 3.
        penalty: of the slices' squared lengths.
    """

    def __init__(self, tensor: Tensor, penalty: float = 0.0) -> None:
        self.tensor, self.penalty = tensor, penalty
        self.by_first = tensor.flatten(1)  # (in, K · out)
        self.by_last = tensor.flatten(0, -2).mT.contiguous()  # (out, in · K)
        self.square = scalar(tensor.double().square().sum())

    def in_double(self) -> RingSweep:
        """The same sweep in float64."""
        return RingSweep(self.tensor.double(), self.penalty)

    def __call__(self, factors: Sequence[Tensor]) -> tuple[list[Tensor], Number, Number]:
        """The swept factors, balanced, their relative error, and Σ ‖slice‖² over ‖tensor‖²."""
        first, *cores, last = factors
        closing, size = len(first), self.tensor.shape[0]
        chain = chained(cores).flatten(1, -2)  # (r_1, K, r_N)
        partial = (last.flatten(0, 1) @ self.by_last).view(closing, last.shape[1], size, -1)
        partial = partial.transpose(2, 3).flatten(1, 2)  # (r_0, r_N · K, in)
        product = chain.transpose(1, 2).flatten(1) @ partial
        first, root = _orthonormal(self._solved(product, _normal(chain, last), first))
        cores[0], chain = (_after_root(root, one) for one in (cores[0], chain))
        partial = (first.flatten(0, 1) @ self.by_first).view(closing, -1, last.shape[2])  # (r_0, r_1 · K, out)
        product = chain.flatten(0, 1).mT @ partial
        last, root = _orthonormal(self._solved(product, _normal(chain.transpose(0, 2), first), last))
        cores[-1] = cores[-1] @ root
        product = partial.transpose(0, 1).flatten(1) @ last.mT.flatten(0, 1)  # (r_1 · K, r_N)
        product = product.view(first.shape[1], *self.tensor.shape[1:-1], last.shape[1])
        cores, error, length = self._swept_middle(product, _pairs(first, last), cores)
        return _balanced([first, *cores, last]), error, length

    def _solved(self, product: Tensor, normal: Tensor, previous: Tensor) -> Tensor:
        """Rows near the previous ones, all (r_0, r, size), for the normal equations of all rows."""
        closing, bond, _ = product.shape
        own = normal.view(closing, bond, closing, bond).diagonal(dim1=0, dim2=2)
        own *= 1 + self.penalty
        return solve_nearby(normal, product.flatten(0, 1), previous.flatten(0, 1)).view(product.shape)

    def _swept_middle(
        self, product: Tensor, pairs: Tensor, cores: Sequence[Tensor]
    ) -> tuple[list[Tensor], Number, Number]:
        """The cores in the middle, updated from first to last, the relative error, and Σ ‖slice‖² over ‖tensor‖².

        A core's own normal equations are the pairs of both ends, brought to its bonds by the cores between.

        Args:
            product: Σ_a U_a W V_aᵀ, shape (r_1, *middle, r_N).
            pairs: of U and V, from `_pairs`.
            cores: the cores in the middle.
        """
        cores = list(cores)
        after: list[Tensor] = []
        for core in cores[:0:-1]:
            after.insert(0, _spread(core) @ after[0] if after else _spread(core))
        for place, core in enumerate(cores):
            before, positions, beyond = core.shape
            normal = pairs @ after[place].mT if place < len(after) else pairs
            normal = normal.view(2, before, before, beyond, beyond).transpose(2, 3)
            normal = normal.reshape(2, before * beyond, before * beyond)
            wanted = product
            for later in cores[:place:-1]:
                wanted = torch.tensordot(wanted, later, dims=([-2, -1], [1, 2]))
            wanted, previous = (one.transpose(1, 2).reshape(-1, positions) for one in (wanted, core))
            rows = solve_nearby(normal[0] + self.penalty * normal[1], wanted, previous)
            cores[place] = rows.view(before, beyond, positions).transpose(1, 2)
            if place < len(cores) - 1:
                turned, root = _orthonormal(cores[place].permute(0, 2, 1))
                cores[place], cores[place + 1] = turned.mT, _after_root(root, cores[place + 1])
                product = torch.tensordot(cores[place], product, dims=([0, 1], [0, 1]))
                pairs = _spread(cores[place]).mT @ pairs
        images = (wanted, *(one @ rows for one in normal))
        inner, model, length = (scalar((rows.double() * one.double()).sum()) for one in images)
        return cores, relative_distance(self.square, inner, model), length / self.square


def _grams(rows: Tensor) -> Tensor:  # (a, b, size) -> (a · a, b · b)
    """The inner products of all rows, by pairs along the first axis and pairs along the second."""
    first, second, _ = rows.shape
    stacked = rows.flatten(0, 1)
    return (stacked @ stacked.mT).view(first, second, first, second).transpose(1, 2).reshape(first**2, second**2)


def _normal(chain: Tensor, rows: Tensor) -> Tensor:
    """The inner products of `chain ×_2 rows[a]`, (r, K, s) and (r_0, s, size), over all slices: (r_0 · r, r_0 · r)."""
    bond, closing = len(chain), len(rows)
    product = _spread(chain) @ _grams(rows).mT
    return product.view(bond, bond, closing, closing).permute(2, 0, 3, 1).reshape(closing * bond, -1)


def _pairs(first: Tensor, last: Tensor) -> Tensor:
    """Σ of ⟨U_a, U_b⟩ ⊗ ⟨V_a, V_b⟩ over all pairs of slices, and over those of a slice with itself: (2, r_1², r_N²)."""
    one, other = _grams(first), _grams(last)
    own = slice(None, None, len(first) + 1)  # the pairs of a slice with itself
    return torch.stack([one.mT @ other, one[own].mT @ other[own]])


def _spread(core: Tensor) -> Tensor:  # (r, k, s) -> (r², s²)
    """What a core makes of pairs of places."""
    return _grams(core.transpose(1, 2))


def _orthonormal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (slices, r, size), orthonormal over all slices, and the root (r, r) by which to multiply what comes next."""
    inner = (rows @ rows.mT).sum(0)
    damping = (_DAMPING / len(inner) * inner.diagonal().sum()).clamp(min=torch.finfo(rows.dtype).tiny)
    root, _ = torch.linalg.cholesky_ex(add_to_diagonal(inner, damping))
    return torch.linalg.solve_triangular(root, rows, upper=False), root


def _after_root(root: Tensor, core: Tensor) -> Tensor:  # (r, r), (r, …)
    """What comes after rows that were made orthonormal, times their root."""
    return (root.mT @ core.flatten(1)).view(core.shape)


def _balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same slices with as much length in U as in V, and in all factors; a vanished slice stays zero."""
    first, *cores, last = factors
    lengths = [torch.linalg.vector_norm(rows.flatten(1), dim=1) for rows in (first, last)]
    goal = (lengths[0] * lengths[1]).sqrt()
    first, last = (
        rows * torch.where(length > 0, goal / length, 0.0)[:, None, None]
        for rows, length in zip((first, last), lengths, strict=True)
    )
    factors = [first, *cores, last]
    sizes = torch.stack([torch.linalg.vector_norm(factor) for factor in factors])
    scale = torch.where(sizes > 0, sizes.log().mean().exp() / sizes, 0.0)
    return [factor * share for factor, share in zip(factors, scale, strict=True)]
