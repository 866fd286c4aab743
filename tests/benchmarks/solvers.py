"""Ours and the peers' solvers behind one face: a kernel and a rank in, a dense approximation out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdcompress.decompositions import cp, tensor_train, tucker
from tdcompress.decompositions.algebra import relative_error
from tdcompress.decompositions.bridge import tensorly_on_torch
from tdcompress.methods import METHODS

Solver = Callable[[Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class Measurement:
    """What one solver made of one kernel.

    Attributes:
        error: relative weight error.
        seconds: wall time of the decomposition alone.
        rank: the rank it worked at.
        parameters: what that rank costs.
    """

    error: float
    seconds: float
    rank: tuple[int, ...]
    parameters: int


def measure(solver: Solver, method: str, kernel: Tensor, rank: Sequence[int]) -> Measurement:
    """Run one solver once; imports and the error's own computation are not counted."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the peers' own deprecations
        start = time.perf_counter()
        dense = solver(kernel, rank)
        seconds = time.perf_counter() - start
    parameters = METHODS[method].parameters_at(tuple(kernel.shape), tuple(rank))
    return Measurement(relative_error(kernel, dense), seconds, tuple(rank), parameters)


def measure_ours(method: str, kernel: Tensor, budget: int) -> Measurement:
    """Ours at defaults: everything that `decompose` does for a budget, the choice of the rank included."""
    conv = torch.nn.Conv2d(
        kernel.shape[1], kernel.shape[0], (kernel.shape[2], kernel.shape[3]), bias=False, device="meta"
    )
    conv.weight = torch.nn.Parameter(kernel)
    # A ratio that stands for exactly this budget, with a hair to spare for rounding.
    ratio = 1 - (budget + 0.01) / kernel.numel()
    start = time.perf_counter()
    layer = METHODS[method].from_conv(conv, ratio=ratio)
    seconds = time.perf_counter() - start
    parameters = sum(stage.weight.numel() for stage in layer)
    return Measurement(relative_error(kernel, layer.weight.detach()), seconds, layer.ranks, parameters)


def ours_cp(kernel: Tensor, rank: Sequence[int]) -> Tensor:
    """tdcompress, defaults."""
    return cp(kernel, rank[0]).to_dense()


def ours_tucker(kernel: Tensor, rank: Sequence[int]) -> Tensor:
    """tdcompress, defaults."""
    return tucker(kernel, rank, modes=(0, 1)).to_dense()


def ours_tt(kernel: Tensor, rank: Sequence[int]) -> Tensor:
    """tdcompress, defaults."""
    return tensor_train(kernel.movedim(0, -1), rank).to_dense().movedim(-1, 0)


def torch_cp(kernel: Tensor, rank: Sequence[int]) -> Tensor:
    """tensorly-torch, defaults."""
    return _tensorly_torch(kernel, rank[0], "cp")


def torch_tucker(kernel: Tensor, rank: Sequence[int]) -> Tensor:
    """tensorly-torch, defaults, the spatial modes whole."""
    return _tensorly_torch(kernel, (*rank, *kernel.shape[2:]), "tucker")


def torch_tt(kernel: Tensor, rank: Sequence[int]) -> Tensor:
    """tensorly-torch, which runs tensorly's TT-SVD."""
    return _tensorly_torch(kernel.movedim(0, -1), (1, *rank, 1), "tt").movedim(-1, 0)


def _tensorly_torch(kernel: Tensor, rank: object, factorization: str) -> Tensor:
    with tensorly_on_torch():
        import tltorch

        factorized = tltorch.FactorizedTensor.new(tuple(kernel.shape), rank, factorization=factorization)
        return factorized.init_from_tensor(kernel).to_tensor().detach()


def tensorly_cp_random(kernel: Tensor, rank: Sequence[int]) -> Tensor:
    """tensorly's parafac from a random start."""
    return cp(kernel, rank[0], solver="tensorly").to_dense()


def tensorly_cp_svd(kernel: Tensor, rank: Sequence[int]) -> Tensor:
    """tensorly's parafac from its SVD start."""
    with tensorly_on_torch() as tensorly:
        return tensorly.cp_to_tensor(tensorly.decomposition.parafac(kernel, rank[0], init="svd"))


def tensorly_tucker(kernel: Tensor, rank: Sequence[int]) -> Tensor:
    """tensorly's partial Tucker over the channel modes."""
    return tucker(kernel, rank, modes=(0, 1), solver="tensorly").to_dense()


def tensorly_tt(kernel: Tensor, rank: Sequence[int]) -> Tensor:
    """tensorly's TT-SVD."""
    return tensor_train(kernel.movedim(0, -1), rank, solver="tensorly").to_dense().movedim(-1, 0)


OURS: dict[str, Solver] = {"cp": ours_cp, "tucker": ours_tucker, "tt": ours_tt}
PEERS: dict[str, dict[str, Solver]] = {
    "cp": {"tensorly-torch": torch_cp, "tensorly, random": tensorly_cp_random, "tensorly, svd": tensorly_cp_svd},
    "tucker": {"tensorly-torch": torch_tucker, "tensorly": tensorly_tucker},
    "tt": {"tensorly-torch": torch_tt, "tensorly": tensorly_tt},
}
