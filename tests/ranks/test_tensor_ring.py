"""What a budget buys of a ring, and what it is foreseen to lose."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdcompress import TROptions, ranks
from tdcompress.decompositions import tensor_ring, tensor_ring_limits
from tdcompress.ranks.tensor_ring import ring_within
from tests.drawing import cases, more
from tests.tensors import trained_weights


@given(data=st.data(), modes=st.lists(st.integers(1, 12), min_size=2, max_size=5))
def test_a_ring_keeps_to_the_budget_and_leaves_no_room_for_a_slice(data, modes):
    budget, bond = data.draw(st.integers(0, 2 * math.prod(modes))), data.draw(st.integers(1, 16))
    rank = ring_within(modes, budget, bond)
    if rank is None:
        return
    limits = tensor_ring_limits((*modes[1:], modes[0]))
    assert ranks.tr_parameters(modes, rank) <= budget
    assert all(1 <= r <= limit for r, limit in zip(rank, limits, strict=True))
    assert rank[0] >= 2
    filled = rank[0] == min(limits[0], rank[1] * modes[1], rank[-1] * modes[0])
    assert filled or ranks.tr_parameters(modes, (rank[0] + 1, *rank[1:])) > budget


@given(bond=st.sampled_from([8, 16, 24]), budget=st.integers(0, 48 * 64 * 9))
def test_a_multiple_of_eight_is_the_last_bond_as_it_is(bond, budget):
    rank = ring_within((64, 48, 3, 3), budget, bond)
    least = (2, bond - bond // 4, bond, bond)  # of two slices
    if ranks.tr_parameters((64, 48, 3, 3), least) <= budget:
        assert rank is not None
        assert rank[-1] == bond


@cases(40)
@given(data=st.data(), modes=st.lists(st.integers(1, 6), min_size=2, max_size=4))
def test_the_ring_comes_first_and_the_train_last_all_within_the_budget(data, modes):
    budget = data.draw(st.integers(0, math.prod(modes)))
    kernels = torch.randn(2, *modes, generator=torch.Generator().manual_seed(0))
    found = ranks.tr_ranks(kernels, budget, TROptions(max_iter=5))
    assert all(ranks.tr_parameters(modes, rank) <= budget for rank in found)
    assert bool(found) == (budget >= ranks.tr_parameters(modes, (1,) * len(modes)))
    assert all(rank[0] > 1 for rank in found[:-1])
    for rank in ranks.tt_ranks(kernels, budget):
        assert all(one <= other for one, other in zip((1, *rank), found[-1], strict=True))


@pytest.mark.parametrize("modes", [(6, 5, 3, 2), (6, 5, 3), (4, 5, 2, 2, 3)])
def test_costs_are_the_number_of_parameters_of_the_cores(modes):
    rank = (2, *(3 for _ in modes[1:]))
    found = tensor_ring(torch.randn(*modes[1:], modes[0], dtype=torch.float64), rank)
    assert ranks.tr_parameters(modes, rank) == sum(core.numel() for core in found.cores)


def test_the_size_of_the_bonds_is_the_one_that_sweeps_prefer():
    """Of a ring with bonds of four, bonds of one lose most."""
    cores = [torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    ends = [torch.randn(3, size, 4, generator=torch.Generator().manual_seed(size)) for size in (24, 20)]
    kernel = torch.einsum("aip,pkq,qls,aos->oikl", ends[0], *cores, ends[1])
    budget = ranks.tr_parameters(kernel.shape, (3, 4, 4, 4))
    ring, _ = ranks.tr_ranks(kernel[None], budget, TROptions(bonds=(1, 4)))
    assert ring == ring_within(kernel.shape, budget, 4) != ring_within(kernel.shape, budget, 1)


@pytest.mark.parametrize(("name", "kept"), [("conv3", 0.1), *more(("conv3", 0.25), ("conv6", 0.1), ("conv6", 0.25))])
def test_the_curve_foresees_what_solving_loses(name, kept):
    kernel = trained_weights()[f"{name}.weight"]
    options, budget = TROptions(), int(kernel.numel() * kept)
    points = ranks.tr_curve(kernel[None], [budget], options)
    rank, lost = next((r, one) for r, one in points if r == ring_within(kernel.shape, budget, max(options.bonds)))
    assert tensor_ring(kernel.movedim(0, -1), rank).solution.relative_error == pytest.approx(lost**0.5, rel=0.03)


@pytest.mark.parametrize("shape", [(16, 12, 3, 3), (16, 12, 5), (64, 3, 5, 5), (16, 12)])
def test_the_curve_of_a_narrow_kernel_is_near_and_falls(shape):
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    budgets = [int(kernel.numel() * kept) for kept in (0.1, 0.25, 0.45)]
    points = ranks.tr_curve(kernel[None], budgets, TROptions())
    costs = [ranks.tr_parameters(shape, rank) for rank, _ in points]
    assert costs == sorted(costs)
    assert max(costs) <= max(budgets)
    assert all(later[1] < earlier[1] for earlier, later in pairwise(points))
    for rank, lost in points:
        assert tensor_ring(kernel.movedim(0, -1), rank).solution.relative_error == pytest.approx(lost**0.5, rel=0.08)


def test_the_curve_of_nothing_is_nothing():
    points = ranks.tr_curve(torch.zeros(1, 8, 6, 3, 3), [200], TROptions())
    assert points[-1][1] == 0.0
