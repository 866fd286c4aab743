"""The truncated SVD against PyTorch's own."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdcompress import CompressionError
from tdcompress.decompositions import svd
from tests.drawing import cases
from tests.tensors import random


@cases(60)
@given(data=st.data(), seed=st.integers(0, 99))
def test_the_error_is_the_tail_falls_with_the_rank_and_vanishes_at_the_full_one(data, seed):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    rows = data.draw(st.permutations(range(len(shape))))[: data.draw(st.integers(1, len(shape) - 1))]
    tensor = random(shape, seed)
    columns = [mode for mode in range(len(shape)) if mode not in rows]
    matrix = tensor.permute(*rows, *columns).reshape(math.prod(shape[mode] for mode in rows), -1)
    values = torch.linalg.svdvals(matrix)
    for rank in range(1, len(values) + 1):
        found = svd(tensor, rank, rows=rows)
        tail = float(values[rank:].square().sum().sqrt() / tensor.norm())
        assert found.solution.relative_error == pytest.approx(tail, abs=1e-8)
        assert torch.allclose(found.values, values[:rank], rtol=0, atol=1e-7 * float(values[0]))
        assert found.to_dense().shape == tensor.shape
    assert found.solution.relative_error <= 1e-12


def test_both_sides_are_orthonormal_and_what_tensorly_finds():
    ours, theirs = (svd(random((6, 5, 3)), 4, rows=(1,), solver=solver) for solver in (None, "tensorly"))
    assert torch.allclose(ours.values, theirs.values, atol=1e-9)
    assert torch.allclose(ours.to_dense(), theirs.to_dense(), atol=1e-9)
    for side in (ours.left, ours.right):
        matrix = side.flatten(0, -2)
        assert torch.allclose(matrix.mT @ matrix, torch.eye(4, dtype=matrix.dtype), atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_badly_scaled_and_zero_tensors(scale):
    found = svd(random((8, 6, 3)).float() * scale, 3)
    assert found.to_dense().isfinite().all()
    assert 0 <= found.solution.relative_error < 1


@pytest.mark.parametrize("rows", [(), (0, 1), (0, 0), (-1,), (2,)])
def test_rows_that_are_no_part_of_the_modes_are_refused(rows):
    with pytest.raises(CompressionError, match=r"rows must be some but not all of the modes 0 \.\. 1"):
        svd(random((4, 3)), 1, rows=rows)


def test_an_infeasible_rank_is_refused():
    with pytest.raises(CompressionError, match="largest feasible is 3"):
        svd(random((4, 3)), 4)
