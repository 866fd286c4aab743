"""tensorly's own solvers and rank rules, run without disturbing the user's tensorly backend.

tensorly is imported here alone, and only when it is asked for: its import costs a second, and importing
tensorly-torch would switch tensorly's backend for the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from tdcompress.errors import CompressionError


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


def check_solver(solver: str | None) -> None:
    """Refuse a solver that does not exist.

    Raises:
        CompressionError: `solver` is neither None nor `"tensorly"`.
    """
    if solver not in (None, "tensorly"):
        raise CompressionError(f"unknown solver {solver!r}; use None for tdcompress's own, or 'tensorly'.")


def cp(tensor: Tensor, rank: int, max_iter: int, tol: float, seed: int) -> tuple[Tensor, list[Tensor], int]:
    """`tensorly.decomposition.parafac` from a uniform [0, 1) start, as in the paper.

    Returns:
        Weights, factors, and the number of sweeps.
    """
    with tensorly_on_torch(), torch.no_grad():
        from tensorly.decomposition import parafac

        (weights, factors), errors = parafac(
            tensor, rank, max_iter, "random", tol=tol, random_state=seed, l2_reg=1e-5, return_errors=True
        )
    return weights, list(factors), len(errors)


def tucker(
    tensor: Tensor, rank: Sequence[int], modes: Sequence[int], max_iter: int, tol: float
) -> tuple[Tensor, dict[int, Tensor], int]:
    """`tensorly.decomposition.partial_tucker`: HOOI over `modes`.

    Returns:
        The core, the factors by mode, and the number of sweeps.
    """
    with tensorly_on_torch(), torch.no_grad():
        from tensorly.decomposition import partial_tucker

        (core, factors), errors = partial_tucker(tensor, list(rank), modes=list(modes), n_iter_max=max_iter, tol=tol)
    return core, dict(zip(modes, factors, strict=True)), len(errors)


def tensor_train(tensor: Tensor, rank: Sequence[int]) -> tuple[Tensor, ...]:
    """`tensorly.decomposition.tensor_train`: TT-SVD."""
    with tensorly_on_torch(), torch.no_grad():
        from tensorly.decomposition import tensor_train as tt

        return tuple(tt(tensor, [1, *rank, 1]))


def rule(method: str, shape: Sequence[int], kept: float) -> tuple[int, ...]:
    """The rank that tensorly-torch takes when told to keep a share of a kernel's parameters.

    Args:
        method: `"cp"`, `"tucker"` or `"tt"`.
        shape: the kernel's (out, in, *kernel_size), spatial sizes of 1 included.
        kept: the share of the parameters, in (0, 1). The rule rounds, so it may keep a little more; for
            the tensor train it keeps far less.

    Returns:
        CP: (rank,). Tucker: (out, in), the spatial modes whole. TT: the inner ranks of the order
        (in, *kernel_size, out), cut to what is feasible.

    Raises:
        CompressionError: tensorly-torch has no rule for this method.
    """
    import tensorly

    spatial = list(range(2, len(shape)))
    if method == "cp":
        return (max(1, int(tensorly.cp_tensor.validate_cp_rank(tuple(shape), kept))),)
    if method == "tucker":
        rank = tensorly.tucker_tensor.validate_tucker_rank(tuple(shape), kept, fixed_modes=spatial)
        return tuple(int(r) for r in rank[:2])
    if method == "tt":
        order = (shape[1], *shape[2:], shape[0])
        return tuple(int(r) for r in tensorly.tt_tensor.validate_tt_rank(order, kept)[1:-1])
    raise CompressionError(f"tensorly-torch has no rank rule for method {method!r}; give ratio alone, or rank.")
