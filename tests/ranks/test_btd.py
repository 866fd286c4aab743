"""How many blocks a budget buys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdcompress import ranks
from tdcompress.decompositions import BTDOptions, btd, btd_limits


@given(data=st.data(), modes=st.lists(st.integers(1, 12), min_size=2, max_size=4), budget=st.integers(0, 3000))
def test_the_most_blocks_that_fit_or_are_of_use(data, modes, budget):
    options = BTDOptions(sizes=tuple(data.draw(st.lists(st.integers(1, 16), min_size=1, max_size=4))))
    limits = btd_limits(modes)
    for blocks, *sizes in ranks.btd_ranks(modes, budget, options):
        assert ranks.btd_parameters(modes, (blocks, *sizes)) <= budget
        assert all(1 <= r <= limit for r, limit in zip((blocks, *sizes), limits, strict=True))
        assert sizes in [[min(size, limit) for limit in limits[1:]] for size in options.sizes]
        full = limits[0] <= blocks * min(sizes)
        assert full or ranks.btd_parameters(modes, (blocks + 1, *sizes)) > budget


def losses(kernel, budget, sizes):
    """What each size loses when it is solved to the end, by its ranks."""
    found = ranks.btd_ranks(kernel.shape, budget, BTDOptions(sizes=sizes))
    return {rank: btd(kernel, rank).solution.relative_error for rank in found}


@pytest.mark.parametrize(("kept", "made_of"), [(0.25, 1), (0.5, 1), (0.3, 4)])
def test_the_size_that_loses_least_is_taken(kept, made_of):
    generator, blocks = torch.Generator().manual_seed(0), 16 // made_of**2
    parts = [torch.randn(blocks, *shape, generator=generator) for shape in ((16, made_of), (12, made_of))]
    cores = torch.randn(blocks, made_of, made_of, 9, generator=generator)
    kernel = torch.einsum("bop,biq,bpqk->oik", *parts, cores).view(16, 12, 3, 3)
    kernel += 0.3 * torch.randn(kernel.shape, generator=generator)
    lost = losses(kernel, budget := int(kept * kernel.numel()), (1, 2, 4, 8, 16))
    assert len(lost) > 2
    (rank,) = ranks.btd_best_ranks(kernel[None], budget, BTDOptions(sizes=(1, 2, 4, 8, 16)))
    assert lost[rank] == pytest.approx(min(lost.values()), rel=0.005)
    assert min(lost.values()) < 0.98 * max(lost.values())


def test_larger_blocks_are_taken_where_they_lose_little_more():
    kernel = torch.randn(16, 12, 3, 3, generator=torch.Generator().manual_seed(0))
    taken = [
        ranks.btd_best_ranks(kernel[None], 800, BTDOptions(sizes=(1, 4, 8), size_tol=tol))[0] for tol in (0, 0.02, 1)
    ]
    lost = losses(kernel, 800, (1, 4, 8))
    assert taken[-1][1:] == (8, 8)
    assert sorted(taken, key=lambda rank: rank[1]) == taken
    assert lost[taken[0]] == pytest.approx(min(lost.values()), rel=0.005)
    assert lost[taken[1]] <= 1.03 * min(lost.values())


def test_the_size_is_one_for_all_groups_and_kernels_of_zeros_have_one():
    groups = torch.randn(6, 12, 10, 3, 3, generator=torch.Generator().manual_seed(0))
    groups[1] = 0
    alike = torch.stack([groups[0]] * 3)
    assert ranks.btd_best_ranks(alike, 400, BTDOptions()) == ranks.btd_best_ranks(alike[:1], 400, BTDOptions())
    for kernels in (groups, groups * 0, groups * 1e-30, groups.half()):
        (rank,) = ranks.btd_best_ranks(kernels, 400, BTDOptions())
        assert ranks.btd_parameters((12, 10, 3, 3), rank) <= 400


def test_costs_are_the_number_of_parameters_of_the_factors():
    found = btd(torch.randn(6, 5, 3, 2, dtype=torch.float64), (3, 2, 1))
    numbers = sum(part.numel() for part in (found.cores, found.left, found.right))
    assert ranks.btd_parameters((6, 5, 3, 2), (3, 2, 1)) == numbers


def test_too_small_a_budget_has_no_rank():
    assert ranks.btd_ranks((8, 6, 3, 3), 22, BTDOptions()) == []
    assert ranks.btd_ranks((8, 6, 3, 3), 23, BTDOptions()) == [(1, 1, 1)]


@pytest.mark.parametrize("shape", [(16, 12, 3, 3), (16, 12, 5), (16, 12)])
def test_the_curve_foresees_what_solving_loses(shape):
    decay = torch.linspace(1, 0.05, shape[1]).view(1, -1, *[1] * (len(shape) - 2))
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * decay
    budgets = [int(kernel.numel() * kept) for kept in (0.1, 0.25, 0.45)]
    for rank, lost in ranks.btd_curve(kernel[None], budgets):
        assert btd(kernel, rank).solution.relative_error == pytest.approx(lost**0.5, rel=0.08)
