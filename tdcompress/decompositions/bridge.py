"""tensorly's own solvers and rank rules, run without disturbing the user's tensorly backend.

tensorly is imported here alone, and only when it is asked for: its import costs a second, and importing
tensorly-torch would switch tensorly's backend for the whole process.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

_TENSORLY_MAX_ITER = 100  # its own default for both of its iterations


@contextmanager
def tensorly_on_torch() -> Iterator[ModuleType]:
    """Tensorly with its PyTorch backend, in this thread only and until the block ends."""
    import tensorly

    backend = tensorly.get_backend()
    # Not tensorly.backend_context: on leaving it makes this thread's backend the default of all threads.
    tensorly.set_backend("pytorch", local_threadsafe=True)
    try:
        yield tensorly
    finally:
        tensorly.set_backend(backend, local_threadsafe=True)


def cp(tensor: Tensor, rank: int, seed: int) -> tuple[list[Tensor], int, bool]:
    """`tensorly.decomposition.parafac` from a uniform [0, 1) start, at its other defaults, as in the paper.

    Returns:
        The factors as rows (rank, size) with the weights in the first, the sweeps, and whether they converged.
    """
    with tensorly_on_torch(), torch.no_grad():
        from tensorly.decomposition import parafac

        found, errors = parafac(tensor, rank, init="random", random_state=seed, l2_reg=1e-5, return_errors=True)
    first, *others = (factor.mT for factor in found.factors)
    return [first * found.weights[:, None], *others], len(errors), len(errors) < _TENSORLY_MAX_ITER


def tucker(tensor: Tensor, rank: Sequence[int], modes: Sequence[int]) -> tuple[Tensor, dict[int, Tensor], int, bool]:
    """`tensorly.decomposition.partial_tucker`: HOOI over `modes`, at its defaults.

    Returns:
        The core, the factors by mode, the sweeps, and whether they converged.
    """
    with tensorly_on_torch(), torch.no_grad():
        from tensorly.decomposition import partial_tucker

        (core, factors), errors = partial_tucker(tensor, list(rank), modes=list(modes))
    return core, dict(zip(modes, factors, strict=True)), len(errors), len(errors) < _TENSORLY_MAX_ITER


def tensor_train(tensor: Tensor, rank: Sequence[int]) -> tuple[Tensor, ...]:
    """`tensorly.decomposition.tensor_train`: TT-SVD."""
    with tensorly_on_torch(), torch.no_grad():
        from tensorly.decomposition import tensor_train as tt

        return tuple(tt(tensor, [1, *rank, 1]))


def svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """`tensorly.tenalg.svd_interface`: left vectors (rows, rank), values (rank,), right vectors (columns, rank)."""
    with tensorly_on_torch() as tensorly:
        left, values, right = tensorly.tenalg.svd_interface(matrix, n_eigenvecs=rank)
    return left, values, right.mT


def cp_rank(shape: Sequence[int], kept: float) -> tuple[int]:
    """CP's rank by tensorly-torch, told to keep a share of the parameters of a kernel (out, in, *kernel_size)."""
    import tensorly

    return (max(1, int(tensorly.cp_tensor.validate_cp_rank(tuple(shape), kept))),)


def tucker_rank(shape: Sequence[int], kept: float) -> tuple[int, ...]:
    """Tucker's ranks by tensorly-torch, (out, in), with the spatial modes whole."""
    import tensorly

    spatial = list(range(2, len(shape)))
    rank = tensorly.tucker_tensor.validate_tucker_rank(tuple(shape), kept, fixed_modes=spatial)
    return tuple(int(r) for r in rank[:2])


def tensor_train_rank(shape: Sequence[int], kept: float) -> tuple[int, ...]:
    """The tensor train's inner ranks by tensorly-torch, in the order (in, *kernel_size, out)."""
    import tensorly

    return tuple(int(r) for r in tensorly.tt_tensor.validate_tt_rank((*shape[1:], shape[0]), kept)[1:-1])


def tensorly_torch() -> ModuleType:
    """Import tensorly-torch, and leave tensorly's backend in every thread as it was."""
    import tensorly

    if "tltorch" in sys.modules:
        return sys.modules["tltorch"]
    of_this_thread, of_new_threads = tensorly.get_backend(), []
    asking = threading.Thread(target=lambda: of_new_threads.append(tensorly.get_backend()))
    asking.start()
    asking.join()
    try:
        return importlib.import_module("tltorch")
    finally:
        tensorly.set_backend(*of_new_threads)
        tensorly.set_backend(of_this_thread, local_threadsafe=True)
