"""Tensor train against tensorly and the bound of TT-SVD."""

import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdcompress import CompressionError
from tdcompress.decompositions import TTOptions, tensor_train, tensor_train_limits
from tdcompress.decompositions.algebra import squared_singular_values
from tests.drawing import cases
from tests.tensors import random


@pytest.mark.parametrize("shape", [(6, 3, 3, 8), (4, 5), (2, 3, 2, 3, 2), (1, 4, 1)])
def test_full_ranks_are_exact(shape):
    tensor = random(shape)
    found = tensor_train(tensor, tensor_train_limits(shape))
    assert torch.allclose(found.to_dense(), tensor, atol=1e-12)
    assert found.rank == tensor_train_limits(shape)


def test_cores_and_error_are_tensorlys():
    tensor, rank = random((6, 3, 3, 8)), (4, 5, 6)
    ours, theirs = (tensor_train(tensor, rank, solver=solver) for solver in (TTOptions(max_iter=0), "tensorly"))
    dense = tensorly.tt_to_tensor([core.numpy() for core in ours.cores])
    assert torch.allclose(ours.to_dense(), torch.from_numpy(dense))
    assert torch.allclose(ours.to_dense(), theirs.to_dense())
    assert ours.solution.relative_error == pytest.approx(theirs.solution.relative_error)


@cases(60)
@given(data=st.data(), seed=st.integers(0, 99))
def test_the_error_is_within_the_tails(data, seed):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    tensor = random(shape, seed)
    rank: list[int] = []
    for size, limit in zip(shape, tensor_train_limits(shape), strict=False):
        rank.append(data.draw(st.integers(1, min(limit, size * (rank[-1] if rank else 1)))))
    tails, rows = [], 1
    for size, r in zip(shape, rank, strict=False):
        rows *= size
        tails.append(float(squared_singular_values(tensor.reshape(rows, -1))[r:].sum()))
    start, found = (tensor_train(tensor, rank, solver=TTOptions(max_iter=n)).solution for n in (0, 20))
    lost = (start.relative_error * float(tensor.norm())) ** 2
    assert max(tails) * (1 - 1e-9) - 1e-12 <= lost <= sum(tails) * (1 + 1e-9) + 1e-12
    assert found.relative_error <= start.relative_error + 1e-9
    assert (found.relative_error * float(tensor.norm())) ** 2 >= max(tails) * (1 - 1e-9) - 1e-12


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ((2, 2), "has 2 entries, 3 are needed"),
        ((7, 2, 2), r"largest feasible is \(6, 18, 8\)"),
        ((1, 4, 2), "after 1 and a mode of size 3 the largest feasible is 3, got 4"),
    ],
)
def test_infeasible_ranks_are_refused(rank, message):
    with pytest.raises(CompressionError, match=message):
        tensor_train(random((6, 3, 3, 8)), rank)


def test_orders_must_be_known():
    with pytest.raises(CompressionError, match="orders must be 'all' or 'given'"):
        TTOptions(orders="some")  # type: ignore[arg-type]
