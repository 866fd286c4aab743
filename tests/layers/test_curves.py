"""The curves that planning reads off: within their budgets, near what solving gives, never better than can be."""

import functools
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.methods import METHODS
from tests.drawing import each_once
from tests.layers.strategies import error_of

KINDS = [
    nn.Conv1d(12, 16, 5),
    nn.Conv2d(12, 16, 3),
    nn.Conv2d(12, 16, 3, groups=2),
    nn.Conv3d(4, 8, 3),
    nn.Conv2d(24, 16, 1),
    nn.Conv2d(24, 16, 1, groups=2),
    nn.Linear(24, 16),
]


def smooth(conv):
    """Weights with a spectrum that falls, as trained ones have."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(conv.weight.shape, generator=generator)
    for mode in range(weight.ndim):
        scale = torch.logspace(0, -1, weight.shape[mode]).reshape([-1 if m == mode else 1 for m in range(weight.ndim)])
        weight = weight * scale
    with torch.no_grad():
        conv.weight.copy_(weight)
    return conv


@functools.cache
def curves(method, conv):
    """(arrangement, budgets, curve) for every arrangement, of a convolution that then is smooth."""
    smooth(conv)
    spec = td.ConvSpec.of(conv)
    kind, found = METHODS[method], []
    for axes in kind.ways(spec, kind.options()):
        kernels = kind.seen(conv.weight.detach(), spec, axes, None)
        size = math.prod(kernels.shape[1:])
        budgets = [size // 8, size // 3, size]
        found.append((axes, budgets, kind.curve(kernels, budgets, kind.options())))
    return found


CASES = [(method, conv) for method in sorted(METHODS) for conv in KINDS if METHODS[method].takes(td.ConvSpec.of(conv))]
every_case = pytest.mark.parametrize(("method", "conv"), each_once(CASES), ids=str)


@every_case
def test_points_are_feasible_within_a_budget_and_fall(method, conv):
    spec, kind = td.ConvSpec.of(conv), METHODS[method]
    for axes, budgets, curve in curves(method, conv):
        modes = kind.modes_of(spec, axes)
        costs = [kind.parameters_at(modes, rank) for rank, _ in curve]
        assert costs
        assert all(any(cost <= budget for budget in budgets) for cost in costs)
        assert all(1 <= r <= limit for rank, _ in curve for r, limit in zip(rank, kind.full_rank(modes), strict=True))
        errors = [lost for _, lost in sorted(curve, key=lambda point: kind.parameters_at(modes, point[0]))]
        assert all(later <= earlier + 1e-9 for earlier, later in pairwise(errors))
        assert all(0 <= lost <= 1 for lost in errors)


@every_case
def test_a_point_is_near_what_solving_gives_and_no_better(method, conv):
    for axes, budgets, curve in curves(method, conv):
        for rank, lost in curve:
            cost = METHODS[method].parameters_at(METHODS[method].modes_of(td.ConvSpec.of(conv), axes), rank)
            solved = error_of(METHODS[method].from_conv(conv, rank=rank, axes=axes))
            assert solved <= math.sqrt(lost) * 1.15 + 1e-3
            if method == "cp" and cost > budgets[1]:
                continue  # where little is lost, the few sweeps behind CP's curve lose several times as much
            assert math.sqrt(lost) <= solved * 1.3 + 0.02


def test_a_method_of_ones_own_is_solved_at_every_rank():
    conv = smooth(nn.Conv2d(8, 8, 3))
    kernels = td.ConvSpec.of(conv).arranged(conv.weight.detach(), ((0,), (1,)))
    found = super(td.TuckerConv, td.TuckerConv).curve(kernels, [100, 200, 400], td.TuckerOptions())
    assert len(found) == 3
    for rank, lost in found:
        solved = error_of(td.TuckerConv.from_conv(conv, rank=rank))
        assert math.sqrt(lost) == pytest.approx(solved, rel=1e-5)
