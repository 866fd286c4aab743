"""The tensor ring as a layer: what is folded, what it costs, and that it is never worse than the tensor train."""

from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.methods import METHODS
from tests.drawing import more
from tests.layers.strategies import error_of
from tests.tensors import trained_weights


@pytest.fixture(scope="module")
def trained():
    """GaripovNet's convolutions with more than one input channel."""
    weights = {name: weight for name, weight in trained_weights().items() if weight.ndim == 4}
    return {name: a_conv(weight) for name, weight in weights.items() if weight.shape[1] > 1}


def a_conv(weight):
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:])
    conv.weight = nn.Parameter(weight)
    return conv


@pytest.mark.parametrize("ratio", [0.99, *more(0.5, 0.75, 0.9, 0.95)])
def test_on_trained_kernels_it_is_no_worse_than_the_train(trained, ratio):
    """Even with few sweeps."""
    assert len(trained) == 5
    for conv in trained.values():
        ring = td.TRConv.from_conv(conv, ratio=ratio, solver=td.TROptions(max_iter=15, bonds=(14,)))
        train = td.TTConv.from_conv(conv, ratio=ratio)
        assert ring.ratio >= ratio
        assert error_of(ring) <= error_of(train) + 1e-6


@pytest.mark.parametrize(("ratio", "share"), [(0.9, 0.98), *more((0.5, 0.7), (0.75, 0.9))])
def test_where_much_is_kept_the_ring_loses_far_less(trained, ratio, share):
    conv = trained["conv2.weight"]
    ring, train = (error_of(METHODS[method].from_conv(conv, ratio=ratio)) for method in ("tr", "tt"))
    assert ring < share * train


def test_slices_go_through_the_stages_of_their_group():
    layer: Any = td.TRConv(td.ConvSpec.of(nn.Conv2d(8, 6, 3, groups=2)), (3, 4, 2, 2), dtype=torch.float64)
    x = torch.randn(5, 8, 7, 6, dtype=torch.float64)
    folded = layer[:2](x)
    assert folded.shape == (15, 8, 7, 6)
    before = layer.input(x).unflatten(1, (2, 3, 4))
    after = layer[:5](x).unflatten(1, (2, 3, 2))
    for group in range(2):
        for piece in range(3):
            expected = before[:, group, piece]
            for stage in (layer.axis0, layer.axis1):
                expected = nn.functional.conv2d(expected, stage.weight.chunk(2)[group])
            torch.testing.assert_close(after[:, group, piece], expected)


def test_one_slice_is_the_stack_of_the_tensor_train():
    conv = nn.Conv2d(12, 16, 3)
    ring, train = td.TRConv.from_conv(conv, rank=(1, 5, 6, 4)), td.TTConv.from_conv(conv, rank=(5, 6, 4))
    assert [type(stage) for stage in ring] == [nn.Conv2d] * 4
    torch.testing.assert_close(ring.weight, train.weight)


def test_the_train_is_compared_in_every_order_of_the_axes():
    """A kernel that is a train in the order of width and height, and far from a ring of few slices."""
    generator = torch.Generator().manual_seed(0)
    cores = [torch.randn(shape, generator=generator) for shape in [(10, 8), (8, 3, 1), (1, 3, 8), (8, 12)]]
    conv = a_conv(torch.einsum("ip,pwq,qhr,ro->oihw", *cores))
    budget = 1 - sum(core.numel() for core in cores) / conv.weight.numel()
    layer = td.TRConv.from_conv(conv, ratio=budget - 1e-6)
    assert layer.axes == ((1,), (0,))
    assert error_of(layer) < 1e-5
    given = td.TRConv.from_conv(conv, ratio=budget - 1e-6, solver=td.TROptions(orders="given"))
    assert given.axes == ((0,), (1,))
    assert error_of(given) > 0.05


@pytest.mark.parametrize("axes", [((0,), (1,)), ((1,), (0,))])
def test_an_order_that_is_given_is_kept(axes):
    conv = nn.Conv2d(12, 16, 3, padding=1)
    layer = td.TRConv.from_conv(conv, ratio=0.5, axes=axes, solver=td.TROptions(max_iter=5))
    assert layer.axes == axes
    x = torch.randn(2, 12, 6, 6)
    torch.testing.assert_close(layer(x), layer.to_conv()(x), rtol=1e-4, atol=1e-5)


def test_multiply_adds_are_those_of_all_slices():
    layer = td.TRConv.from_conv(nn.Conv2d(16, 12, 3, padding=1), rank=(3, 4, 5, 2))
    found = td.report(nn.Sequential(layer), torch.zeros(10, 16, 8, 8), rounds=1).layers[0].cost.multiply_adds
    pixels = 10 * 8 * 8
    assert found == (pixels * 16 * 12 * 9, pixels * 3 * (16 * 4 + 4 * 5 * 3 + 5 * 2 * 3 + 2 * 12))


def test_only_random_starts_depend_on_the_seed():
    assert td.TRConv.deterministic(td.TROptions())
    assert not td.TRConv.deterministic(td.TROptions(starts=("orthogonal", "random")))


def test_plan_takes_it_up():
    conv = nn.Conv2d(24, 32, 3)
    plan = td.plan(nn.Sequential(conv), 0.5, methods=["tr"])
    assert plan.layers[0].choice.method == "tr"
    small: Any = td.decompose(nn.Sequential(conv), "0", "tr", rank=plan.layers[0].choice.rank)
    assert small[0].ratio >= 0.45
