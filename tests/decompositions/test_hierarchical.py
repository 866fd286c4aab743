"""Hierarchical Tucker against its definition, brute force, Tucker and the bound of the hierarchical SVD."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdcompress import CompressionError
from tdcompress.decompositions import HTOptions, hierarchical_tucker, hierarchical_tucker_limits, tucker
from tdcompress.decompositions.algebra import squared_singular_values, unfold
from tests.drawing import cases
from tests.tensors import random


@pytest.mark.parametrize(
    "shape", [(6, 4, 3, 3), (8, 6, 5), (6, 5), (5, 1, 3, 3), (1, 4, 3), (3, 2, 25), (4, 3, 2, 2, 2)]
)
def test_full_ranks_are_exact(shape):
    tensor = random(shape)
    found = hierarchical_tucker(tensor, hierarchical_tucker_limits(shape))
    assert torch.allclose(found.to_dense(), tensor, atol=1e-12)
    assert found.rank == hierarchical_tucker_limits(shape)


@cases(60)
@given(data=st.data(), seed=st.integers(0, 99))
def test_the_error_is_within_the_tails_of_the_three_edges_and_sweeps_never_raise_it(data, seed):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    tensor = random(shape, seed)
    rank = tuple(data.draw(st.integers(1, limit)) for limit in hierarchical_tucker_limits(shape))
    whole = tensor.reshape(*shape[:2], -1)
    tails = [float(squared_singular_values(unfold(whole, mode))[r:].sum()) for mode, r in enumerate(rank)]
    start, found = (hierarchical_tucker(tensor, rank, solver=HTOptions(max_iter=n)).solution for n in (0, 100))
    lost = (start.relative_error * float(tensor.norm())) ** 2
    assert max(tails) * (1 - 1e-9) - 1e-12 <= lost <= sum(tails) * (1 + 1e-9) + 1e-12
    assert found.relative_error <= start.relative_error + 1e-9
    # No approximation at these ranks is nearer than the largest tail, so this is within √3 of the best one.
    assert lost <= 3 * (found.relative_error * float(tensor.norm())) ** 2 * (1 + 1e-9) + 1e-12


def test_it_is_a_sum_of_channel_matrices_times_filters_in_orthonormal_bases():
    found = hierarchical_tucker(random((8, 6, 3, 4)), (4, 3, 5))
    terms = [
        torch.einsum("oi,hw->oihw", found.left @ found.transfer[..., k] @ found.right.mT, found.filters[k])
        for k in range(5)
    ]
    assert torch.allclose(found.to_dense(), torch.stack(terms).sum(0))
    for basis in (found.left, found.right, found.filters.flatten(1).mT):
        assert torch.allclose(basis.mT @ basis, torch.eye(basis.shape[1], dtype=basis.dtype), atol=1e-12)


def test_with_all_filters_it_is_tucker():
    tensor = random((10, 8, 3, 3))
    ours = hierarchical_tucker(tensor, (5, 4, 9)).solution.relative_error
    assert ours == pytest.approx(tucker(tensor, (5, 4), modes=(0, 1)).solution.relative_error, rel=1e-6)


def test_a_kernel_of_so_many_filters_is_met_exactly():
    kernel = torch.einsum("oik,khw->oihw", random((8, 6, 2)), random((2, 3, 3), 1))
    assert hierarchical_tucker(kernel, (8, 6, 2)).solution.relative_error < 1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_types_and_scales_are_ordinary_input(dtype, scale):
    found = hierarchical_tucker((random((8, 6, 3, 3)) * scale).to(dtype), (4, 3, 5))
    assert found.left.dtype == found.filters.dtype == dtype
    assert found.to_dense().isfinite().all()
    assert found.solution.relative_error < 0.9


def test_degenerate_kernels_are_ordinary_input():
    shape = (8, 6, 3, 3)
    ones = [random([size if i == mode else 1 for i in range(4)], mode) for mode, size in enumerate(shape)]
    one = math.prod(ones[1:], start=ones[0])
    for tensor in (one, torch.cat([random((4, 6, 3, 3))] * 2)):
        for rank in itertools.product((1, 3), (1, 3), (1, 3)):
            found = hierarchical_tucker(tensor, rank)
            assert found.to_dense().isfinite().all()
    assert hierarchical_tucker(one, (1, 1, 1)).solution.relative_error < 1e-7


@pytest.mark.parametrize(
    ("rank", "message"),
    [((2, 2), "has 2 entries, 3 are needed"), ((2, 2, 10), r"largest feasible is \(8, 6, 9\)")],
)
def test_infeasible_ranks_are_refused(rank, message):
    with pytest.raises(CompressionError, match=message):
        hierarchical_tucker(random((8, 6, 3, 3)), rank)


def test_options_are_checked():
    with pytest.raises(CompressionError, match="candidates must be a whole number from 1"):
        HTOptions(candidates=0)
    with pytest.raises(CompressionError, match="tensorly has no solver for this method"):
        hierarchical_tucker(random((4, 3, 2)), (1, 1, 1), solver="tensorly")
