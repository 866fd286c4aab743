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
        full = limits[0] <= blocks * min(sizes)
        assert full or ranks.btd_parameters(modes, (blocks + 1, *sizes)) > budget


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
