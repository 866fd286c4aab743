"""Shapes and ranks of reshaped matrices: budgets kept, all shapes tried, errors and costs as they turn out to be."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdcompress import CompressionError, ranks
from tdcompress.decompositions import (
    Reshape,
    blr,
    blr_limit,
    factorizations,
    kronecker,
    kronecker_limit,
    ttm,
    ttm_limits,
)
from tdcompress.ranks.reshaped import ReshapedRank, Spectra, as_split
from tests.drawing import cases
from tests.tensors import falling

Curve = Callable[..., list[ReshapedRank]]
CURVES: dict[str, Curve] = {"kronecker": ranks.kronecker_curve, "ttm": ranks.ttm_curve, "blr": ranks.blr_curve}
PARAMETERS = {"kronecker": ranks.kronecker_parameters, "ttm": ranks.ttm_parameters, "blr": ranks.blr_parameters}


def solved(name, matrix, choice):
    rank = choice.rank if name == "ttm" else choice.rank[0]
    solvers: dict[str, Callable[..., Any]] = {"kronecker": kronecker, "ttm": ttm, "blr": blr}
    return solvers[name](matrix, rank, choice.reshape)


def entries(found):
    return (
        sum(core.numel() for core in found.cores)
        if hasattr(found, "cores")
        else found.left.numel() + found.right.numel()
    )


@pytest.mark.parametrize("name", CURVES)
@given(
    shape=st.tuples(st.integers(2, 24), st.integers(2, 24)),
    kept=st.floats(0.05, 0.95),
    reshape=st.sampled_from(["best", "balanced"]),
    seed=st.integers(0, 99),
)
@cases(40)
def test_a_budget_is_kept_and_what_is_promised_is_lost(name, shape, kept, reshape, seed):
    matrix, budget = falling(shape, seed), int(kept * math.prod(shape))
    for choice in CURVES[name](matrix[None], [budget], reshape):
        found = solved(name, matrix, choice)
        assert entries(found) == PARAMETERS[name](choice.reshape, choice.rank) <= budget
        lost = found.solution.relative_error**2
        if name == "ttm":
            assert lost <= choice.lost + 1e-8
        else:
            assert lost == pytest.approx(choice.lost, abs=1e-8)


@pytest.mark.parametrize("name", CURVES)
def test_more_is_lost_under_smaller_budgets_and_none_is_proposed_where_none_fits(name):
    matrix = falling((24, 36))
    budgets = [0, 3, *range(20, 860, 120)]
    losses = [[one.lost for one in CURVES[name](matrix[None], [budget])] for budget in budgets]
    assert losses[0] == losses[1] == []
    found = [lost for some in losses for lost in some]
    assert found == sorted(found, reverse=True)
    assert 0 < found[-1] < found[0] < 1
    together = CURVES[name](matrix[None], budgets)
    assert [one.lost for one in together] == pytest.approx(found)


@pytest.mark.parametrize("kept", [0.15, 0.25, 0.5])
def test_the_best_sum_of_kronecker_products_is_the_best_of_all_that_can_be_solved_for(kept):
    matrix = falling((12, 20))
    budget, losses = int(kept * matrix.numel()), []
    for rows, columns, strided in product(factorizations(12, 2), factorizations(20, 2), [False, True]):
        shape = Reshape(rows, columns, strided_columns=strided)
        rank = min(budget // sum(shape.sizes), kronecker_limit(shape))
        svd_or_none = min(shape.sizes) == 1 or (rows[0], columns[0]) in {(12, 1), (1, 20)}
        if rank and not svd_or_none:
            losses.append(kronecker(matrix, rank, shape).solution.relative_error ** 2)
    assert ranks.kronecker_curve(matrix[None], [budget])[0].lost == pytest.approx(min(losses), abs=1e-9)


@pytest.mark.parametrize("kept", [0.3, 0.5])
def test_the_best_blocks_are_the_best_of_all_grids(kept):
    matrix = falling((12, 20))
    budget, losses = int(kept * matrix.numel()), []
    for rows, columns, *strided in product(factorizations(12, 2), factorizations(20, 2), [False, True], [False, True]):
        shape = Reshape(rows, columns, *strided)
        rank = min(budget // ranks.blr_parameters(shape, (1,)), blr_limit(shape))
        if rank and rows[0] * columns[0] > 1:
            losses.append(blr(matrix, rank, shape).solution.relative_error ** 2)
    assert ranks.blr_curve(matrix[None], [budget])[0].lost == pytest.approx(min(losses), abs=1e-9)


def prefixes(shape):
    """Rows and columns before every bond."""
    bonds = range(1, shape.cores)
    return [(math.prod(shape.rows[:bond]), math.prod(shape.columns[:bond])) for bond in bonds]


def chains(rows, columns, cores):
    """All shapes without a core that is a mere number, and without the bond of an SVD, by brute force."""
    for out, inner in product(factorizations(rows, cores), factorizations(columns, cores)):
        for strided in (False, True):
            shape = Reshape(out, inner, strided_columns=strided)
            if min(shape.sizes) > 1 and not {(rows, 1), (1, columns)} & set(prefixes(shape)):
                yield shape


@pytest.mark.parametrize("cores", [2, 3, 4])
@pytest.mark.parametrize("kept", [0.25, 0.45])
def test_the_best_train_has_the_least_bound_of_all_shapes_and_ranks(cores, kept):
    matrix = falling((8, 12))
    budget, spectra, best = int(kept * matrix.numel()), Spectra(matrix[None]), math.inf
    for shape in chains(8, 12, cores):
        bonds = [
            Reshape((out, 8 // out), (inner, 12 // inner), strided_columns=shape.strided_columns)
            for out, inner in prefixes(shape)
        ]
        for rank in product(*(range(1, limit + 1) for limit in ttm_limits(shape))):
            fits = ranks.ttm_parameters(shape, rank) <= budget
            ends = zip((1, *rank), shape.sizes, (*rank, 1), strict=True)
            if fits and all(left <= size * right and right <= size * left for left, size, right in ends):
                lost = sum(spectra.unfolding(one)[r] for one, r in zip(bonds, rank, strict=True))
                best = min(best, float(lost))
    found = ranks.ttm_ranks(matrix[None], budget, cores=(cores,))[0]
    assert found.lost == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("name", ["random", "blocks"])
@cases(40)
@given(shape=st.tuples(st.integers(2, 24), st.integers(2, 24)), kept=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_no_train_loses_more_than_the_best_sum_of_kronecker_products_which_is_one(name, shape, kept, seed):
    matrix = falling(shape, seed)
    if name == "blocks":
        matrix = torch.kron(matrix, torch.ones(2, 3, dtype=matrix.dtype)) + 0.1 * falling((2 * shape[0], 3 * shape[1]))
    budget = int(kept * matrix.numel())
    trains, sums = (CURVES[method](matrix[None], [budget]) for method in ("ttm", "kronecker"))
    assert bool(trains) >= bool(sums)
    assert all(train.lost <= one.lost + 1e-12 for train, one in zip(trains, sums, strict=False))


def test_the_trains_that_are_proposed_lose_most_at_bonds_that_differ():
    matrix = falling((48, 60))
    for budget in (288, 720, 1440):
        spectra, worst = Spectra(matrix[None]), set()
        proposed = ranks.ttm_ranks(matrix[None], budget, count=5)
        for one in proposed:
            bonds = [
                Reshape((out, 48 // out), (inner, 60 // inner), strided_columns=one.reshape.strided_columns)
                for out, inner in prefixes(one.reshape)
            ]
            tails = [float(spectra.unfolding(bond)[r]) for bond, r in zip(bonds, one.rank, strict=True)]
            worst.add(as_split(bonds[tails.index(max(tails))]))
        assert len(worst) == len(proposed) == 5
        assert [one.lost for one in proposed] == sorted(one.lost for one in proposed)


def test_the_unfolding_that_is_computed_once_for_several_reshapes_is_that_of_each():
    matrix = falling((12, 20))
    spectra = Spectra(matrix[None])
    for rows, columns, *strided in product(factorizations(12, 2), factorizations(20, 2), [False, True], [False, True]):
        shape = Reshape(rows, columns, *strided)
        values = torch.linalg.svdvals(shape.to_tensor(matrix).flatten(2).flatten(0, 1))
        lost = 1 - values.square().cumsum(0) / values.square().sum()
        assert spectra.unfolding(shape)[1:] == pytest.approx(lost.numpy(), abs=1e-9)
    assert len(spectra._unfoldings) < 2 * 36


def test_groups_share_shape_and_rank_and_lose_the_sum():
    kernels = torch.stack([falling((12, 20), seed) for seed in range(3)])
    for name, curve in CURVES.items():
        choice = curve(kernels, [120])[0]
        found = [solved(name, kernel, choice) for kernel in kernels]
        lost = sum(float((kernel - one.to_dense()).square().sum()) for kernel, one in zip(kernels, found, strict=True))
        share = lost / float(kernels.square().sum())
        assert share <= choice.lost + 1e-9
        if name != "ttm":
            assert share == pytest.approx(choice.lost, abs=1e-9)


@pytest.mark.parametrize("name", CURVES)
def test_zero_rank_deficient_and_prime_matrices(name):
    assert all(one.lost == 0 for one in CURVES[name](torch.zeros(1, 12, 20), [100, 200]))
    low = falling((12, 1)) @ falling((1, 20))
    assert CURVES[name](low[None], [150])[0].lost == pytest.approx(0, abs=1e-12)
    assert CURVES[name](falling((7, 13))[None], [60]) == []


def test_multiply_adds_are_those_of_the_products_that_are_made():
    shape, rank = Reshape((4, 6, 2), (3, 5, 8)), (7, 9)
    cores = ttm(falling((48, 120)), rank, shape).cores
    totals = []
    for turned in (False, True):
        x, total = torch.zeros(3, 5, 8)[..., None], 0
        for place in (0, 1, 2) if turned else (2, 1, 0):
            core = cores[place] if not turned else cores[place].permute(3, 1, 2, 0)
            axis = next(axis for axis, size in enumerate(x.shape) if size == core.shape[2])
            total += x.numel() // core.shape[2] // x.shape[-1] * core.numel()
            x = torch.tensordot(x, core.to(x), dims=([axis, x.ndim - 1], [2, 3])).movedim(-2, -1)
        assert x.numel() == 48
        totals.append(total)
    assert ranks.ttm_multiply_adds(shape, rank) == min(totals) < max(totals)
    two = Reshape((4, 12), (15, 8))
    assert ranks.kronecker_multiply_adds(two, (3,)) == ranks.ttm_multiply_adds(two, (3,))


def test_what_cannot_be_is_refused():
    with pytest.raises(CompressionError, match="2, 3 or 4 cores here, got"):
        ranks.ttm_ranks(falling((8, 12))[None], 50, cores=(5,))
    with pytest.raises(CompressionError, match="2, 3 or 4 cores here, the reshape has 5"):
        ranks.ttm_ranks(falling((8, 12))[None], 50, ((2, 2, 2, 1, 1), (2, 2, 3, 1, 1)))
    with pytest.raises(CompressionError, match="this one is 8 × 12"):
        ranks.kronecker_curve(falling((8, 12))[None], [50], ((2, 2), (2, 6)))
