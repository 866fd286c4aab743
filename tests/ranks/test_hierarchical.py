"""The ranks of hierarchical Tucker: budgets kept, brute force matched."""

import itertools
import math

import pytest
import torch

from tdcompress import ranks
from tdcompress.decompositions import HTOptions, hierarchical_tucker, hierarchical_tucker_limits
from tests.tensors import falling


def truncated(kernel, rank):
    return hierarchical_tucker(kernel, rank, solver=HTOptions(max_iter=0)).solution.relative_error


def feasible(shape, budget):
    for rank in itertools.product(*(range(1, limit + 1) for limit in hierarchical_tucker_limits(shape))):
        whole = math.prod(rank)
        if ranks.ht_parameters(shape, rank) <= budget and all(r * r <= whole for r in rank):
            yield rank


@pytest.mark.parametrize("shape", [(6, 5, 3, 2), (7, 6, 3), (8, 6), (5, 1, 3, 3), (3, 4, 2, 2, 2)])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.8])
def test_the_rank_is_the_best_truncation_within_the_budget(shape, kept):
    kernel = falling(shape)
    budget = int(kernel.numel() * kept)
    found = ranks.ht_ranks(kernel[None], budget, HTOptions(candidates=1))
    all_of_them = list(feasible(shape, budget))
    assert len(found) == bool(all_of_them)
    for rank in found:
        assert rank in all_of_them
        assert truncated(kernel, rank) <= min(truncated(kernel, one) for one in all_of_them) + 1e-9


@pytest.mark.parametrize("kept", [0.2, 0.4, 0.6])
def test_of_several_the_one_that_sweeps_like_best_is_taken(kept):
    kernel = falling((24, 16, 3, 3))
    budget = int(kernel.numel() * kept)
    lost = []
    for candidates in (1, 3, 5):
        (rank,) = ranks.ht_ranks(kernel[None], budget, HTOptions(candidates=candidates))
        assert ranks.ht_parameters(kernel.shape, rank) <= budget
        lost.append(hierarchical_tucker(kernel, rank).solution.relative_error)
    assert lost[0] >= lost[1] - 1e-5
    assert lost[1] >= lost[2] - 1e-5


def test_costs_are_the_number_of_parameters_of_the_factors():
    found = hierarchical_tucker(falling((6, 5, 3, 2)), (4, 3, 5))
    parts = (found.left, found.right, found.transfer, found.filters)
    assert ranks.ht_parameters((6, 5, 3, 2), (4, 3, 5)) == sum(part.numel() for part in parts)


def test_the_curve_is_what_truncating_loses_and_groups_add_up():
    kernels = torch.stack([falling((8, 6, 3, 3)), 2 * falling((8, 6, 3, 3), 1)])
    norms = kernels.flatten(1).norm(dim=1)
    points = ranks.ht_curve(kernels, [40, 100, 200])
    assert len(points) == 3
    for (rank, lost), budget in zip(points, (40, 100, 200), strict=True):
        assert ranks.ht_parameters((8, 6, 3, 3), rank) <= budget
        squares = [(truncated(kernel, rank) * norm) ** 2 for kernel, norm in zip(kernels, norms, strict=True)]
        assert lost == pytest.approx(float(sum(squares) / norms.square().sum()), rel=1e-6)
    for rank, lost in ranks.ht_curve(kernels[:1], [40, 100, 200]):
        assert lost == pytest.approx(truncated(kernels[0], rank) ** 2, rel=1e-6)


def test_a_zero_kernel_loses_nothing():
    assert [lost for _, lost in ranks.ht_curve(torch.zeros(1, 8, 6, 3, 3), [100])] == [0.0]
