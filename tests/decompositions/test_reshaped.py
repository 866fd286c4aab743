"""Sums of Kronecker products, tensor-train matrices and low-rank blocks, against brute force, NumPy and tensorly."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.decomposition import tensor_train_matrix

from tdcompress import CompressionError, TTMOptions
from tdcompress.decompositions import (
    Reshape,
    balanced_factors,
    blr,
    blr_limit,
    factorizations,
    kronecker,
    kronecker_limit,
    ttm,
    ttm_limits,
)
from tdcompress.decompositions.algebra import relative_error
from tests.drawing import cases
from tests.tensors import random


@st.composite
def reshapes(draw, cores=(2,)):
    number = draw(st.sampled_from(cores))
    rows, columns = (tuple(draw(st.lists(st.integers(1, 4), min_size=number, max_size=number))) for _ in range(2))
    found = Reshape(rows, columns, draw(st.booleans()), draw(st.booleans()))
    return found if math.prod(found.shape) > 1 else Reshape((2, 2), (2, 1))


def digits(index, factors, strided):
    """The place in a grid of the index-th row or column, by counting."""
    places = []
    for factor in factors if strided else reversed(factors):
        places.append(index % factor)
        index //= factor
    return tuple(places if strided else reversed(places))


@given(shape=reshapes(cores=(2, 3, 4)))
@cases(50)
def test_a_reshape_puts_every_entry_where_counting_does_and_goes_back(shape):
    matrix = torch.arange(math.prod(shape.shape)).reshape(shape.shape)
    tensor = shape.to_tensor(matrix)
    for row in range(0, shape.shape[0], 3):
        for column in range(0, shape.shape[1], 2):
            rows = digits(row, shape.rows, shape.strided_rows)
            columns = digits(column, shape.columns, shape.strided_columns)
            place = tuple(axis for pair in zip(rows, columns, strict=True) for axis in pair)
            assert tensor[place] == matrix[row, column]
    assert torch.equal(shape.to_matrix(tensor), matrix)
    assert torch.equal(shape.to_matrix(shape.to_tensor(torch.stack([matrix, 2 * matrix])))[1], 2 * matrix)


@given(number=st.integers(1, 600), parts=st.integers(1, 4))
@cases(60)
def test_factorizations_are_all_products_once_and_the_balanced_one_has_the_largest_entropy(number, parts):
    found = factorizations(number, parts)
    assert len(set(found)) == len(found)
    assert all(math.prod(factors) == number for factors in found)
    if parts == 3:
        assert len(found) == sum(number % (a * b) == 0 for a in range(1, number + 1) for b in range(1, number // a + 1))
    best = balanced_factors(number, parts)
    assert best == tuple(sorted(best))
    entropies = [-(np.array(f) / sum(f) * np.log(np.array(f) / sum(f))).sum() for f in found]
    place = found.index(best)
    assert entropies[place] == pytest.approx(max(entropies))


def rearranged(matrix, shape):
    """Van Loan's rearrangement, entry by entry."""
    found = torch.zeros(shape.sizes, dtype=matrix.dtype)
    for row in range(matrix.shape[0]):
        for column in range(matrix.shape[1]):
            rows = digits(row, shape.rows, shape.strided_rows)
            columns = digits(column, shape.columns, shape.strided_columns)
            place = [rows[core] * shape.columns[core] + columns[core] for core in range(2)]
            found[tuple(place)] = matrix[row, column]
    return found


def tails(values):  # (…, values) -> one more
    """[r]: the norm of all but the first r singular values."""
    squares = values.square().reshape(-1, values.shape[-1]).sum(0)
    return [float(squares[rank:].sum().sqrt()) for rank in range(len(squares) + 1)]


@given(shape=reshapes(), seed=st.integers(0, 99))
@cases(50)
def test_kronecker_loses_the_tail_of_van_loans_rearrangement_and_nothing_at_the_full_rank(shape, seed):
    matrix = random(shape.shape, seed)
    expected = tails(torch.linalg.svdvals(rearranged(matrix, shape)))
    for rank in range(1, kronecker_limit(shape) + 1):
        found = kronecker(matrix, rank, shape)
        assert found.rank == rank
        assert found.solution.relative_error == pytest.approx(expected[rank] / float(matrix.norm()), abs=1e-8)
        assert relative_error(matrix, found.to_dense()) == pytest.approx(found.solution.relative_error, abs=1e-12)
    assert found.solution.relative_error <= 1e-12


def test_kronecker_is_a_sum_of_numpys_products_of_which_strides_are_a_permutation():
    matrix, shape = random((6, 20)), ((2, 3), (5, 4))
    found = kronecker(matrix, 4, shape)
    products = sum(np.kron(a, b) for a, b in zip(found.left.numpy(), found.right.numpy(), strict=True))
    assert np.allclose(products, found.to_dense().numpy(), atol=1e-12)
    order = torch.arange(20).reshape(4, 5).T.flatten()
    strided = kronecker(matrix, 4, Reshape(*shape, strided_columns=True))
    products = sum(np.kron(a, b) for a, b in zip(strided.left.numpy(), strided.right.numpy(), strict=True))
    assert np.allclose(products, strided.to_dense()[:, order].numpy(), atol=1e-12)


@given(shape=reshapes(cores=(2, 3, 4)), data=st.data(), seed=st.integers(0, 99))
@cases(60)
def test_ttm_keeps_the_bound_of_its_unfoldings_and_is_exact_at_the_full_ranks(shape, data, seed):
    matrix = random(shape.shape, seed)
    tensor = shape.to_tensor(matrix).reshape(shape.sizes)
    rank: list[int] = []
    bound = 0.0
    for bond, limit in enumerate(ttm_limits(shape), start=1):
        rank.append(data.draw(st.integers(1, min(limit, shape.sizes[bond - 1] * (rank[-1] if rank else 1)))))
        unfolding = tensor.reshape(math.prod(shape.sizes[:bond]), -1)
        bound += tails(torch.linalg.svdvals(unfolding))[rank[-1]] ** 2
    found = ttm(matrix, rank, shape)
    assert found.rank == tuple(rank)
    assert found.solution.relative_error <= math.sqrt(bound) / float(matrix.norm()) + 1e-8
    assert relative_error(matrix, found.to_dense()) == pytest.approx(found.solution.relative_error, abs=1e-12)
    assert ttm(matrix, ttm_limits(shape), shape).solution.relative_error <= 1e-12


def test_ttm_is_what_tensorly_finds_and_with_two_cores_the_sum_of_kronecker_products():
    matrix, rows, columns = random((24, 30)), (2, 3, 4), (5, 3, 2)
    found = ttm(matrix, (4, 5), (rows, columns), solver=TTMOptions(max_iter=0))
    theirs = tensor_train_matrix(matrix.reshape(*rows, *columns).numpy(), [1, 4, 5, 1])
    assert np.allclose(theirs.to_tensor().reshape(24, 30), found.to_dense().numpy(), atol=1e-9)
    shape = Reshape((4, 6), (5, 6), strided_columns=True)
    assert torch.allclose(ttm(matrix, (7,), shape).to_dense(), kronecker(matrix, 7, shape).to_dense(), atol=1e-9)


@given(shape=reshapes(), seed=st.integers(0, 99))
@cases(50)
def test_blocks_are_the_best_of_their_rank_and_exact_at_the_full_one(shape, seed):
    matrix = random(shape.shape, seed)
    row = [digits(index, shape.rows, shape.strided_rows)[0] for index in range(matrix.shape[0])]
    column = [digits(index, shape.columns, shape.strided_columns)[0] for index in range(matrix.shape[1])]
    grid = [
        matrix[[i for i, n in enumerate(row) if n == k]][:, [j for j, n in enumerate(column) if n == m]]
        for k in range(shape.rows[0])
        for m in range(shape.columns[0])
    ]
    expected = tails(torch.linalg.svdvals(torch.stack(grid)))
    for rank in range(1, blr_limit(shape) + 1):
        found = blr(matrix, rank, shape)
        assert found.solution.relative_error == pytest.approx(expected[rank] / float(matrix.norm()), abs=1e-8)
        assert relative_error(matrix, found.to_dense()) == pytest.approx(found.solution.relative_error, abs=1e-12)
        assert torch.allclose(found.left.norm(dim=-2), found.right.norm(dim=-1), atol=1e-9)
    assert found.solution.relative_error <= 1e-12


def test_blocks_of_rank_one_are_monarch_two_block_diagonal_matrices_and_a_shuffle_after_each():
    matrix = random((16, 16))
    found = blr(matrix, 1, "balanced")
    first = torch.block_diag(*(found.right[:, block, 0] for block in range(4)))  # (row blocks, columns of a block)
    second = torch.block_diag(*(found.left[block, :, :, 0].T for block in range(4)))
    shuffle = torch.eye(16, dtype=torch.float64)[torch.arange(16).reshape(4, 4).T.flatten()]
    assert torch.allclose(shuffle @ second @ shuffle @ first, found.to_dense(), atol=1e-12)


DECOMPOSITIONS: dict[str, Callable[[torch.Tensor, int], Any]] = {
    "kronecker": lambda matrix, rank: kronecker(matrix, rank),
    "ttm": lambda matrix, rank: ttm(matrix, (rank, rank)),
    "blr": lambda matrix, rank: blr(matrix, rank),
}


@pytest.mark.parametrize("name", DECOMPOSITIONS)
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_badly_scaled_and_zero_matrices(name, scale):
    found = DECOMPOSITIONS[name](random((24, 30)).float() * scale, 2)
    assert found.to_dense().isfinite().all()
    assert found.to_dense().dtype == torch.float32
    assert 0 <= found.solution.relative_error < 1


@pytest.mark.parametrize("name", DECOMPOSITIONS)
@pytest.mark.parametrize("shape", [(7, 13), (1, 24), (24, 1), (7, 24)])
def test_prime_sizes_and_vectors(name, shape):
    matrix = random(shape)
    found = DECOMPOSITIONS[name](matrix, 1)
    assert found.to_dense().shape == shape
    assert relative_error(matrix, found.to_dense()) == pytest.approx(found.solution.relative_error, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_half_precision_keeps_its_type(name, dtype):
    found = DECOMPOSITIONS[name](random((24, 30)).to(dtype), 2)
    assert found.to_dense().dtype == dtype
    assert 0 < found.solution.relative_error < 1


@pytest.mark.parametrize(
    ("reshape", "message"),
    [
        (((2, 3), (4, 4)), "is for a matrix of 6 × 16, and this one is 8 × 16"),
        (((8,), (4, 4)), "two or more factors of the rows and as many of the columns"),
        (((8, 0), (4, 4)), "whole numbers from 1"),
        (((8, 1.0), (4, 4)), "whole numbers from 1"),
        ("best", "a reshape is 'balanced', a Reshape, or two tuples"),
        (8, "a reshape is 'balanced', a Reshape, or two tuples"),
    ],
)
def test_reshapes_that_do_not_fit_are_refused(reshape, message):
    for decompose in (kronecker, blr, lambda matrix, rank, given: ttm(matrix, (rank,), given)):
        with pytest.raises(CompressionError, match=message):
            decompose(random((8, 16)), 1, reshape)


def test_what_is_no_matrix_or_has_no_such_rank_is_refused():
    with pytest.raises(CompressionError, match=r"takes a matrix, and got a tensor of shape \(2, 3, 4\)"):
        kronecker(torch.zeros(2, 3, 4), 1)
    three = ((2, 2, 2), (4, 2, 2))
    with pytest.raises(CompressionError, match="has two factors, and the reshape is for 3"):
        kronecker(random((8, 16)), 1, three)
    with pytest.raises(CompressionError, match="got 3"):
        blr(random((8, 16)), 1, three)
    with pytest.raises(CompressionError, match="largest feasible is 4"):
        blr(random((8, 16)), 5, ((2, 4), (4, 4)))
    with pytest.raises(CompressionError, match="largest feasible is 8"):
        kronecker(random((8, 16)), 9, ((2, 4), (4, 4)))
    with pytest.raises(CompressionError, match="1 entries, 2 are needed"):
        ttm(random((8, 16)), (1,), three)
