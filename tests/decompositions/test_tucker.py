"""Tucker against tensorly and the bounds of the HOSVD."""

import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdcompress import CompressionError
from tdcompress.decompositions import TuckerOptions, tucker
from tdcompress.decompositions.algebra import squared_singular_values, unfold
from tests.drawing import cases
from tests.tensors import random


@pytest.mark.parametrize("modes", [(0, 1), (0, 1, 2, 3), (1,), (3, 0)])
def test_full_ranks_are_exact_and_other_modes_stay_whole(modes):
    tensor = random((6, 5, 3, 2))
    found = tucker(tensor, [tensor.shape[mode] for mode in modes], modes=modes)
    assert torch.allclose(found.to_dense(), tensor, atol=1e-12)
    assert sorted(found.factors) == sorted(modes)


def test_core_and_factors_are_what_tensorly_makes_of_them():
    found = tucker(random((6, 5, 3)), (3, 2, 2))
    dense = tensorly.tucker_to_tensor((found.core.numpy(), [found.factors[mode].numpy() for mode in range(3)]))
    assert torch.allclose(found.to_dense(), torch.from_numpy(dense))
    for factor in found.factors.values():
        assert torch.allclose(factor.mT @ factor, torch.eye(factor.shape[1], dtype=factor.dtype), atol=1e-12)


def test_it_loses_no_more_than_tensorlys_solver():
    tensor = random((16, 12, 3, 3))
    ours, theirs = (tucker(tensor, (6, 5), modes=(0, 1), solver=solver) for solver in (None, "tensorly"))
    assert ours.solution.relative_error <= theirs.solution.relative_error + 1e-6


@cases(40)
@given(data=st.data(), seed=st.integers(0, 99))
def test_the_error_is_within_the_tails_and_hooi_never_loses_more_than_hosvd(data, seed):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    tensor = random(shape, seed)
    sizes = [(size, tensor.numel() // size) for size in shape]
    rank = [data.draw(st.integers(1, min(pair))) for pair in sizes]
    start, found = tucker(tensor, rank, solver=TuckerOptions(max_iter=0)), tucker(tensor, rank)
    tails = sum(float(squared_singular_values(unfold(tensor, m))[r:].sum()) for m, r in enumerate(rank))
    total = float(tensor.norm())
    assert (start.solution.relative_error * total) ** 2 <= tails * (1 + 1e-9) + 1e-12
    assert found.solution.relative_error <= start.solution.relative_error + 1e-9
    largest = max(float(squared_singular_values(unfold(tensor, m))[r:].sum()) for m, r in enumerate(rank))
    assert (found.solution.relative_error * total) ** 2 >= largest * (1 - 1e-9) - 1e-12  # no rank can beat this


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_badly_scaled_kernels(scale):
    found = tucker(random((8, 6, 3, 3)).float() * scale, (3, 2), modes=(0, 1))
    assert found.to_dense().isfinite().all()
    assert 0 <= found.solution.relative_error < 1


@pytest.mark.parametrize(("rank", "message"), [((3,), "has 1 entries, 2"), ((7, 2), "largest feasible is \\(6, 5\\)")])
def test_infeasible_ranks_are_refused(rank, message):
    with pytest.raises(CompressionError, match=message):
        tucker(random((6, 5, 3)), rank, modes=(0, 1))


@pytest.mark.parametrize("modes", [(0, 0), (-1, 0), (0, 3)])
def test_modes_that_are_none_or_twice_the_same_are_refused(modes):
    with pytest.raises(CompressionError, match=r"modes must be different ones of 0 \.\. 2"):
        tucker(random((6, 5, 3)), (2, 2), modes=modes)


def test_candidates_must_be_one_at_least():
    with pytest.raises(CompressionError, match="candidates must be a whole number from 1, got 0"):
        TuckerOptions(candidates=0)
