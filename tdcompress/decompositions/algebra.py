"""What the decompositions share: unfolding, mode products, leading subspaces, errors.

Singular vectors are found from Gram matrices in float64 wherever the Gram matrix is the smaller side:
a kernel's unfolding is a few hundred rows by a few thousand columns, and the eigenvectors of the small
symmetric matrix cost a tenth of its SVD.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tdcompress.decompositions.scalars import either, scalar
from tdcompress.errors import CompressionError
from tdcompress.threads import threads_for

_WAITING = 768  # rows of a symmetric matrix, below which threads that look for its eigenvalues mostly wait
_HALVED = 512  # rows, from which it pays to compute a symmetric product by halves
_DAMPING = 1e-7  # of the mean diagonal of normal equations
_BLOCK = 1 << 22  # elements, up to which a copy in float64 costs nothing that counts
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of eight bits PyTorch computes nothing


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """The matrix whose rows are the slices of `tensor` along `mode`.

    Args:
        tensor: any order ≥ 1, shape (I_0, …, I_N).
        mode: the mode that becomes the rows.

    Returns:
        Shape (I_mode, product of the others), the other modes in their order (Kolda & Bader 2009 with
        the last mode running fastest, as tensorly does).

    >>> unfold(torch.zeros(4, 3, 2), 1).shape
    torch.Size([3, 8])
    """
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)


def mode_dot(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Multiply `tensor` by `matrix` along `mode`.

    Args:
        tensor: shape (I_0, …, I_N).
        matrix: shape (J, I_mode).
        mode: the mode to contract.

    Returns:
        The tensor with I_mode replaced by J.

    >>> mode_dot(torch.zeros(4, 3, 2), torch.zeros(5, 3), 1).shape
    torch.Size([4, 5, 2])
    """
    return torch.tensordot(matrix, tensor, dims=([1], [mode])).movedim(0, mode)


def chained(cores: Sequence[Tensor]) -> Tensor:  # (r_0, …, r_1), (r_1, …, r_2), … -> (r_0, …, r_N)
    """Cores multiplied out along the bonds between them."""
    product = cores[0]
    for core in cores[1:]:
        product = torch.tensordot(product, core, dims=1)
    return product


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:  # (rank, size), … -> (rank, product of the sizes)
    """The outer products of the rows with the same number, the last factor running fastest."""
    product = factors[0]
    for rows in factors[1:]:
        product = (product[:, :, None] * rows[:, None, :]).flatten(1)
    return product


def working(tensor: Tensor) -> Tensor:
    """`tensor` in the precision to work in: float64, but of a large one no second copy of twice the size is made."""
    if tensor.numel() <= _BLOCK:
        return tensor.double()
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def gram(matrix: Tensor) -> Tensor:  # (…, rows, columns) -> (…, rows, rows)
    """`matrix @ matrix.T` in float64; of a large matrix block by block, so that no copy of it is made."""
    if matrix.numel() <= _BLOCK or matrix.dtype == torch.float64:
        matrix = matrix.double()
        return matrix @ matrix.mT
    total = matrix.new_zeros(*matrix.shape[:-1], matrix.shape[-2], dtype=torch.float64)
    for block in torch.split(matrix, max(1, _BLOCK * matrix.shape[-1] // matrix.numel()), dim=-1):
        total += gram(block)
    return total


def add_self_product(total: Tensor, rows: Tensor) -> Tensor:  # (…, rows, rows), (…, rows, columns)
    """`total += rows @ rows.T` in place; of many rows little more than the half of the product is computed.

    No more than a quarter of it is there at a time, beside the total.
    """
    count = rows.shape[-2]
    if count < _HALVED:
        return total.add_(rows @ rows.mT)
    half = count // 2
    first, second = rows[..., :half, :], rows[..., half:, :]
    across = first @ second.mT
    total[..., :half, half:].add_(across)
    total[..., half:, :half].add_(across.mT)
    add_self_product(total[..., :half, :half], first)
    add_self_product(total[..., half:, half:], second)
    return total


def unravelled(index: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """The places along every axis of entries that are counted through; torch's own loads SymPy, for a second."""
    places = []
    for size in reversed(shape):
        places.append(index % size)
        index = index // size
    return tuple(reversed(places))


def squared_norm(tensor: Tensor) -> float:
    """The sum of the squares, in float64."""
    return sum(float(block.double().square().sum()) for block in _blocks(tensor))


def _blocks(tensor: Tensor) -> Sequence[Tensor]:
    return torch.split(tensor, max(1, _BLOCK * len(tensor) // max(1, tensor.numel())))


def leading_subspace(matrix: Tensor, rank: int) -> Tensor:
    """The `rank` leading left singular vectors of `matrix`.

    Args:
        matrix: shape (rows, columns).
        rank: how many vectors, at most `rows`; beyond `columns` they are any that complete the basis.

    Returns:
        Orthonormal columns (rows, rank) in float64.
    """
    rows, columns = matrix.shape
    if rows > columns >= rank:
        # A tall matrix: its Gram matrix would be the larger side and would blur the small singular
        # values into the null space, so that an exact decomposition would not be exact.
        vectors, _, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
        return vectors[:, :rank]
    _, vectors = eigh(gram(matrix))
    return vectors.flip(-1)[:, :rank]


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues of symmetric matrices, (…, size, size), in ascending order, and the eigenvectors as columns.

    Small ones by one thread: more of them meet thousands of times in this routine, and take a hundred times as long
    where they have to share their cores.
    """
    with threads_for(_eigen_work(symmetric)):
        spectrum = torch.linalg.eigh(symmetric)
    return spectrum.eigenvalues, spectrum.eigenvectors


def _eigen_work(symmetric: Tensor) -> int:
    """Elements, as `threads_for` counts them: from some hundreds of rows on the work between two meetings is enough."""
    return 0 if symmetric.shape[-1] < _WAITING else symmetric.shape[-1] ** 3


def squared_singular_values(matrix: Tensor) -> Tensor:  # (…, rows, columns) -> (…, smaller side)
    """The squared singular values of matrices in float64, largest first."""
    symmetric = gram(matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT)
    with threads_for(_eigen_work(symmetric)):  # for the reason that eigh() gives
        values = torch.linalg.eigvalsh(symmetric)
    return values.flip(-1).clamp(min=0)


def solve_nearby(normal: Tensor, product: Tensor, previous: Tensor, penalty: float = 0.0) -> Tensor:
    """Solve the normal equations `normal @ rows = product`, the diagonal (1 + penalty) times, near the previous rows.

    The proximal term (Navasca, De Lathauwer & Kindermann 2008) makes collinear terms harmless and keeps a sweep
    monotone. Where even so the factorization fails, the rows stay as they are: the loss does not rise, and the other
    factors go on.
    """
    damping = normal.trace() * (_DAMPING / len(normal))
    damped = normal.clone()
    damped.diagonal().mul_(1 + penalty).add_(damping)
    root, info = torch.linalg.cholesky_ex(damped)
    rows = torch.cholesky_solve(torch.addcmul(product, damping, previous), root)
    failed, total = scalar(info), scalar(rows.sum())
    return either((failed == 0) & (total - total == 0), rows, previous)  # ∞ − ∞ is not a number


def add_to_diagonal(matrix: Tensor, addend: Tensor) -> Tensor:  # (…, size, size), what broadcasts to (…, size)
    """Square matrices with something more on their diagonals."""
    total = matrix.clone()
    total.diagonal(dim1=-2, dim2=-1).add_(addend)
    return total


def power_of_two(tensor: Tensor) -> float:
    """A scale that brings a tensor of 1e-30 into range without changing a bit of its shape; 1 for a zero one."""
    largest = float(tensor.abs().max())
    return 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 1.0


def relative_error(tensor: Tensor, approximation: Tensor) -> float:
    """‖tensor − approximation‖ / ‖tensor‖ in the Frobenius norm; 0 for a zero tensor met exactly."""
    pairs = zip(_blocks(tensor), _blocks(approximation), strict=True)
    return ratio_of_norms(sum(float((one.double() - other.double()).square().sum()) for one, other in pairs), tensor)


def ratio_of_norms(squared_distance: float, tensor: Tensor) -> float:
    """The root of a squared distance over the norm of a tensor; 0 of nothing for a zero tensor."""
    total = squared_norm(tensor)
    if total == 0:
        return 0.0 if squared_distance == 0 else math.inf
    return math.sqrt(squared_distance / total)


def check_tensor(tensor: Tensor) -> None:
    """Refuse what no decomposition can work on.

    Raises:
        CompressionError: no floating point of 16 bits or more, on the meta device, of order < 2, empty, or not finite.
    """
    if tensor.dtype not in _DTYPES:
        raise CompressionError(
            f"the weight is {tensor.dtype}; only floating-point weights of 16 bits or more can be decomposed. "
            "Dequantize it, or decompose before quantizing."
        )
    if tensor.is_meta:
        raise CompressionError("the weight is on the meta device and has no values; load the weights first.")
    if tensor.ndim < 2 or tensor.numel() == 0:
        raise CompressionError(f"a decomposition needs two or more non-empty modes, got {tuple(tensor.shape)}.")
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).sum())
        raise CompressionError(
            f"{count} of {tensor.numel()} weights are NaN or infinite; decompose a checkpoint from before "
            "the training diverged."
        )


def check_rank(rank: Sequence[int], limits: Sequence[int], what: str) -> None:
    """Refuse a rank of the wrong length or beyond `limits`.

    Raises:
        CompressionError: naming the rank, the entry, and the largest that is feasible.
    """
    if len(rank) != len(limits):
        raise CompressionError(
            f"{what} rank {tuple(rank)} has {len(rank)} entries, {len(limits)} are needed; "
            f"the largest feasible is {_shown(limits)}."
        )
    for entry, limit in zip(rank, limits, strict=True):
        if isinstance(entry, bool) or not isinstance(entry, int) or not 1 <= entry <= limit:
            raise CompressionError(
                f"{what} rank {_shown(rank)} is not feasible: every entry must be a whole number from 1, and "
                f"the largest feasible is {_shown(limits)}."
            )


def _shown(rank: Sequence[int]) -> str:
    return str(rank[0]) if len(rank) == 1 else str(tuple(rank))
