"""Alternating least squares for CP: starts and sweeps.

Two things make a kernel's sweep fast. The matricised-tensor-times-Khatri-Rao product (MTTKRP) of every
mode is taken from one of two partial products, `tensor ×` the factor of its largest or its second largest
mode: two matrix products a sweep whatever the order, and the Khatri-Rao matrix of two channel modes (for
512 × 512 × 3 × 3 a 786 432 × R matrix) is never formed. And sweeps are extrapolated, which saves most of them.

A factor is stored as rows, (rank, size): one contiguous vector a term.

Where there are far fewer terms than channels, most sweeps are made on a core: the tensor in the bases of its leading
singular vectors, somewhat more of them than terms (Bro & Andersson 1998, who call it compression). The last sweeps see
the tensor itself again, and find what the bases have left out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import khatri_rao, leading_subspace, mode_dot, solve_nearby, unfold
from tdcompress.decompositions.extrapolation import Run, most_promising
from tdcompress.decompositions.options import CPOptions
from tdcompress.decompositions.orthogonal import OrthogonalTerms
from tdcompress.decompositions.scalars import Number, relative_distance, scalar
from tdcompress.decompositions.sweeping import Start

_BASES = 1.2  # singular vectors of a core for every term
_WORTH = 0.6  # of a tensor's elements: a larger core is not worth a sweep of its own
_LARGE = 1 << 18  # elements of a tensor whose sweeps are products of matrices first of all
_LAST = 40  # sweeps that are kept for the tensor itself


def als(
    tensor: Tensor, rank: int, options: CPOptions, generator: torch.Generator, dtype: torch.dtype
) -> tuple[list[Tensor], int, bool]:
    """The factors of a tensor of order ≥ 3 as rows, the number of sweeps, and whether they converged.

    `dtype` is what the factors will be rounded to: in bfloat16 long terms that cancel would not cancel any more.
    """
    order = sorted(range(tensor.ndim), key=lambda mode: -tensor.shape[mode])
    ordered = tensor.permute(order)
    penalty = max(options.penalty, torch.finfo(dtype).eps ** 2)
    most = options.sweeps(tensor.shape, rank)
    core, bases = _core(ordered, rank)
    runs = [Run(Sweep(core, penalty), start(kind, core, rank, generator)) for kind in options.starts]
    best = most_promising(runs, most)
    swept = best.sweeps
    if bases:
        best.advance(most - min(_LAST, most // 4) - swept, options.tol)
        swept, lifted = best.sweeps, list(best.current)
        for mode, basis in bases.items():
            lifted[mode] = lifted[mode] @ basis.mT.to(lifted[mode])
        best = Run(Sweep(ordered, penalty), [rows.to(ordered) for rows in lifted])
    converged = best.advance(most - swept, options.tol)
    sweeps = best.sweeps + (swept if bases else 0)
    return [best.current[order.index(mode)].to(tensor) for mode in range(tensor.ndim)], sweeps, converged


def _core(tensor: Tensor, rank: int) -> tuple[Tensor, dict[int, Tensor]]:
    """The tensor in the leading singular bases of its long modes, and these by mode; without any if not worth it."""
    size = math.ceil(_BASES * rank)
    shape = [min(length, size) for length in tensor.shape]
    if tensor.numel() < _LARGE or math.prod(shape) > _WORTH * tensor.numel():
        return tensor, {}
    bases = {
        mode: leading_subspace(unfold(tensor, mode), size).to(tensor)
        for mode, length in enumerate(tensor.shape)
        if length > size
    }
    core = tensor
    for mode, basis in bases.items():
        core = mode_dot(core, basis.mT, mode)
    return core.contiguous(), bases


def start(kind: Start, tensor: Tensor, rank: int, generator: torch.Generator) -> list[Tensor]:
    """Where the sweeps begin, for a tensor with its modes in order of size."""
    return _random_start(tensor, rank, generator) if kind == "random" else OrthogonalTerms(tensor).rows(rank)


def _random_start(tensor: Tensor, rank: int, generator: torch.Generator) -> list[Tensor]:
    """Normal random vectors, drawn on the CPU so that every device starts alike."""
    drawn = [torch.randn(rank, size, generator=generator, dtype=torch.float64, device="cpu") for size in tensor.shape]
    return [torch.nn.functional.normalize(rows, dim=1).to(tensor) for rows in drawn]


class Sweep:
    """One update of every factor by least squares, for a tensor with its modes in order of size.

    What is minimized is ‖tensor − approximation‖² + penalty · Σ ‖term‖².
    """

    def __init__(self, tensor: Tensor, penalty: float = 0.0) -> None:
        self.tensor, self.shape, self.penalty = tensor, tensor.shape, penalty
        first, second = tensor.shape[:2]
        self.by_first = tensor.reshape(first, -1)
        self.by_second = tensor.transpose(0, 1).reshape(second, -1)
        self.square = scalar(tensor.double().square().sum())

    def in_double(self) -> Sweep:
        """The same sweep in float64."""
        return Sweep(self.tensor.double(), self.penalty)

    def __call__(self, factors: Sequence[Tensor]) -> tuple[list[Tensor], Number, Number]:
        """The swept factors, balanced, their relative error, and Σ ‖term‖² over ‖tensor‖²."""
        first, second, *rest = factors
        grams = [rows @ rows.mT for rows in factors]
        rank, spread = len(first), khatri_rao(rest)[:, :, None]
        # Both partial products are (rank, size, *rest); the first serves one mode, the second all others.
        partial = (second @ self.by_second).view(rank, self.shape[0], *self.shape[2:])
        first = _least_squares(torch.bmm(partial.flatten(2), spread).squeeze(-1), grams, 0, first, self.penalty)
        partial = (first @ self.by_first).view(rank, self.shape[1], *self.shape[2:])
        second = _least_squares(torch.bmm(partial.flatten(2), spread).squeeze(-1), grams, 1, second, self.penalty)
        swept = [first, second, *rest]
        small = torch.bmm(second[:, None, :], partial.flatten(2)).view(rank, *self.shape[2:])
        product = small
        for mode in range(2, len(factors)):
            product = _contract_others(small, swept[2:], mode - 2)
            swept[mode] = _least_squares(product, grams, mode, swept[mode], self.penalty)
        products = _hadamard(grams).double()  # of all pairs of terms
        inner = (product.double() * swept[-1].double()).sum()
        error = relative_distance(self.square, scalar(inner), scalar(products.sum()))
        return _balanced(swept, grams), error, scalar(products.trace()) / self.square


def _contract_others(small: Tensor, factors: Sequence[Tensor], keep: int) -> Tensor:
    """Sum (rank, *sizes) against every factor but one: (rank, size of that one)."""
    for mode, rows in enumerate(factors):
        if mode != keep:
            shape = [1] * small.ndim
            shape[0], shape[mode + 1] = rows.shape
            small = (small * rows.view(shape)).sum(mode + 1, keepdim=True)
    return small.flatten(1)


def _least_squares(product: Tensor, grams: list[Tensor], mode: int, previous: Tensor, penalty: float) -> Tensor:
    """Solve `normal @ rows = product` near the previous rows, and renew this mode's Gram matrix.

    The squared length of a term is that of this mode's row times the diagonal entry of the normal equations, so
    they carry the penalty on their diagonal.
    """
    normal = _hadamard(grams[:mode] + grams[mode + 1 :])
    rows = solve_nearby(normal, product, previous, penalty)
    grams[mode] = rows @ rows.mT
    return rows


def _hadamard(grams: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.mul, grams)


def _balanced(factors: Sequence[Tensor], grams: Sequence[Tensor]) -> list[Tensor]:
    """The same terms with the same length in every mode; a vanished term stays zero."""
    squares = torch.stack([matrix.diagonal() for matrix in grams])
    goal = squares.log().mean(0).exp()
    scale = (goal / squares).sqrt().nan_to_num(nan=0.0)  # 0 / 0, of a vanished term
    return [rows * share for rows, share in zip(factors, scale[..., None].unbind(), strict=True)]
