"""What a matrix loses at a rank, estimated for many reshapes at once from products with random signs.

The unfolding of a reshape is a matrix M with s rows, M Mᵀ has the eigenvalues λ, and a rank r loses the s − r smallest
of them. Their sum Σ λ = ‖M‖² is that of the matrix, whatever the reshape. Their squares are estimated: for vectors x
and x′ of independent random signs E (xᵀ M Mᵀ x′)² = ‖M Mᵀ‖² = Σ λ², and a product of signs along the axes that make up
the rows does as well, so that one product with the matrix serves all reshapes with that axis.

With q = s Σ λ² / (Σ λ)² and p = r / s, the r largest have no more than the share p + √(p (1 − p) (q − 1)) of the sum
(Cauchy and Schwarz), which r equal ones above equal ones reach. If the logarithms are normal, they have the share
Φ(Φ⁻¹(p) + √log q). Spectra of matrices with a structure are near the first, smooth ones near the second, and the mean
of the two tells well enough which few reshapes are worth an exact look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tdcompress.decompositions.reshape import Reshape
from tdcompress.ranks.reshaped import as_split, spectrum_tail

_SMALL = 1 << 19  # entries of a matrix up to which all its reshapes are looked at exactly
_EXACT = 16  # of a larger one so many,
_ENTRIES = 1 << 24  # as long as their entries together are no more than these,
_LEAST = 2  # and no fewer
_SHORT = 32  # rows of an unfolding that are too few to be told by their moments, and cheap to look at
_PROBES = 96
_FEWEST = 8  # probes of one block, where there are many blocks


class SketchedSpectra:
    """Estimates of what `Spectra` has, within some percent. The signs are drawn from seeds of their own.

    Args:
        kernels: shape (groups, rows, columns); the groups share a rank.
    """

    def __init__(self, kernels: Tensor) -> None:
        self._given = kernels.detach()
        self.shape = (kernels.shape[1], kernels.shape[2])
        self._unfoldings: dict[Reshape, np.ndarray] = {}
        self._blocks: dict[Reshape, np.ndarray] = {}
        self._products: dict[tuple[int, int, bool, int], Tensor] = {}
        self._energies: dict[tuple[int, bool], Tensor] = {}

    @cached_property
    def _kernels(self) -> Tensor:  # of norm 1
        norm = float(torch.linalg.vector_norm(self._given, dtype=torch.float64))
        return (self._given / (norm or 1.0)).float()

    @cached_property
    def _total(self) -> float:  # of the squares of the groups' ‖M‖²
        return float(self._kernels.square().sum((1, 2), dtype=torch.float64).square().sum())

    def unfolding(self, reshape: Reshape) -> np.ndarray:
        """[r]: about the share that is lost if r singular values are kept of the first core's axes against the rest."""
        split = as_split(reshape)
        if split not in self._unfoldings:
            if min(split.sizes) <= (_SHORT if self._given[0].numel() <= _ENTRIES // 4 else _SHORT // 4):
                self._unfoldings[split] = spectrum_tail(split, self._kernels)
            else:
                squares = self._squares_of_unfolding(split)
                self._unfoldings[split] = _tail(min(split.sizes), squares, self._total)
        return self._unfoldings[split]

    def blocks(self, reshape: Reshape) -> np.ndarray:
        """[r]: about the share that is lost if r singular values are kept of each block; the first core counts them."""
        if reshape not in self._blocks:
            side, inside = min(reshape.rows[1], reshape.columns[1]), self._squares_of_blocks(reshape)
            self._blocks[reshape] = _tail(side, inside, float(self._energies_of_blocks(reshape).square().sum()))
        return self._blocks[reshape]

    def _squares_of_unfolding(self, split: Reshape) -> float:
        """Σ λ²: of the axes of both cores the largest is multiplied first, which leaves least for the next."""
        axes = [(split.rows[core], 0, bool(core) != split.strided_rows, core) for core in (0, 1)]
        axes += [(split.columns[core], 1, bool(core) != split.strided_columns, core) for core in (0, 1)]
        factor, side, fast, core = max(axes)
        other, _, other_fast, _ = next(axis for axis in axes if axis[1] != side and axis[3] == core)
        products = self._product(side, factor, fast, _PROBES)
        grid = _unflattened(products, 3 - side, other, other_fast)  # the other side of the matrix
        images = torch.einsum("pgxyf,pf->gpxy", grid, _signs(1 - side, other, other_fast, _PROBES).to(grid))
        return _mean_square(images.flatten(2))

    def _squares_of_blocks(self, reshape: Reshape) -> float:
        """Σ λ² of all blocks, by products along the longer side of a block."""
        probes = max(_FEWEST, math.ceil(_PROBES / math.sqrt(reshape.rows[0] * reshape.columns[0])))
        axes = [(reshape.rows[1], 0, not reshape.strided_rows), (reshape.columns[1], 1, not reshape.strided_columns)]
        (other, _, other_fast), (factor, side, fast) = sorted(axes)
        grid = _unflattened(self._product(side, factor, fast, probes), 3 - side, other, other_fast)
        return _mean_square(grid.permute(1, 2, 3, 0, 4))  # (groups, two axes of blocks, probes, side of a block)

    def _energies_of_blocks(self, reshape: Reshape) -> Tensor:
        key = (reshape.rows[1], not reshape.strided_rows)
        if key not in self._energies:
            squares = _unflattened(self._kernels.square(), 1, *key)
            self._energies[key] = squares.sum(-1)  # (groups, blocks down, columns)
        return _unflattened(self._energies[key], 2, reshape.columns[1], not reshape.strided_columns).sum(-1)

    def _product(self, side: int, factor: int, fast: bool, probes: int) -> Tensor:
        """The matrix with signs along an axis of a side: (probes, groups, rows, columns), that side so much shorter."""
        key = (side, factor, fast, probes)
        if key not in self._products:
            axis = 1 + side
            count = self._kernels.shape[axis] // factor
            grid = torch.unflatten(self._kernels, axis, (count, factor) if fast else (factor, count))
            signs = _signs(side, factor, fast, probes).to(grid)
            self._products[key] = torch.tensordot(signs, grid, dims=([1], [axis + fast]))
        return self._products[key]


def _unflattened(tensor: Tensor, axis: int, factor: int, fast: bool) -> Tensor:
    """An axis as a grid of two, that of the factor moved to the end."""
    count = tensor.shape[axis] // factor
    return torch.unflatten(tensor, axis, (count, factor) if fast else (factor, count)).movedim(axis + fast, -1)


def _signs(side: int, factor: int, fast: bool, probes: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(4 * factor + 2 * side + fast)
    return torch.randint(0, 2, (probes, factor), generator=generator, device="cpu") * 2 - 1


def _mean_square(images: Tensor) -> float:
    """The mean of (xᵀ M Mᵀ x′)² over pairs of probes, from images Mᵀ x, (…, probes, size); the sum of all matrices."""
    products = images @ images.mT
    products.diagonal(dim1=-2, dim2=-1).zero_()
    probes = images.shape[-2]
    return float(products.square().sum(dtype=torch.float64)) / (probes * (probes - 1))


def _tail(side: int, squares: float, total: float) -> np.ndarray:
    """[r]: the share of all but the r largest of so many numbers with Σ λ² / (Σ λ)² = squares / total."""
    from scipy.special import ndtr, ndtri  # takes its time to load

    shares = np.arange(side + 1) / side
    excess = max(0.0, side * squares / total - 1) if total else math.inf
    bound = np.minimum(1.0, shares + np.sqrt(shares * (1 - shares) * excess)) if total else np.ones(side + 1)
    normal = ndtr(ndtri(shares[1:-1]) + math.sqrt(math.log1p(excess)))
    return np.asarray(1.0 - (bound + np.concatenate([[0.0], normal, [1.0]])) / 2)


def is_small(kernels: Tensor) -> bool:
    """Whether all reshapes of kernels, (groups, rows, columns), are looked at exactly."""
    return kernels[0].numel() <= _SMALL


def looked_at(kernels: Tensor) -> int:
    """How many reshapes of large kernels, (groups, rows, columns), are."""
    return max(_LEAST, min(_EXACT, _ENTRIES // kernels[0].numel()))


def promising(
    ranks: Mapping[Reshape, int], kernels: Tensor, estimate: Callable[[Reshape, int], float]
) -> list[tuple[Reshape, int]]:
    """The shapes that are worth an exact look: those whose rank is not 0, or of many of a large matrix the best few.

    Args:
        ranks: what the budget allows for each shape.
        kernels: shape (groups, rows, columns).
        estimate: about what is lost with a shape and its rank.
    """
    possible = [(shape, rank) for shape, rank in ranks.items() if rank]
    count = looked_at(kernels)
    if is_small(kernels) or len(possible) <= count:
        return possible
    return sorted(possible, key=lambda one: estimate(*one))[:count]
