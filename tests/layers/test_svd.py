"""The SVD's arrangements, and what is known of its error."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tdcompress as td
from tests.drawing import cases
from tests.layers.strategies import an_input, error_of, factorize, layers

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@cases(80)
@given(dense=layers("svd"), data=st.data())
def test_every_split_keeps_the_contract_and_loses_the_tail_of_its_matrix(dense, data):
    spec = td.ConvSpec.of(dense)
    solver = td.SVDOptions(split=data.draw(st.sampled_from(["all", "channel", "spatial"])))
    axes = td.SVDConv.arrangements(spec.kernel_axes, solver)[0]
    rank = data.draw(st.integers(1, *td.SVDConv.full_rank(spec.modes(axes))))
    layer = factorize(dense, "svd", rank=rank, solver=solver)
    assert layer.axes == axes
    x = an_input(dense)
    assert torch.allclose(layer(x), layer.to_conv()(x), rtol=0, atol=1e-10)
    weight = dense.weight.detach()
    tail = sum(squared_tail(kernel, rank) for kernel in spec.arranged(weight, axes))
    lost = (layer.weight.detach() - weight).square().sum()
    assert float(lost) == pytest.approx(tail, abs=1e-12 * float(weight.square().sum()))


def squared_tail(kernel, rank):
    out, inner, first, second = kernel.shape
    matrix = kernel.permute(0, 3, 1, 2).reshape(out * second, inner * first)
    return float(torch.linalg.svdvals(matrix)[rank:].square().sum())


@pytest.mark.parametrize("build", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_the_best_split_is_taken_for_a_ratio(build):
    conv = build(12, 16, 3)
    best = td.SVDConv.from_conv(conv, ratio=0.6)
    for split in ("channel", "spatial"):
        one = td.SVDConv.from_conv(conv, ratio=0.6, solver=td.SVDOptions(split=split))
        assert error_of(best) <= error_of(one)


def test_the_splits_are_every_way_to_share_the_axes_out():
    assert td.SVDConv.arrangements((0, 1), td.SVDOptions()) == [((0, 1), ()), ((0,), (1,)), ((1,), (0,)), ((), (0, 1))]
    assert len(td.SVDConv.arrangements((0, 1, 2), td.SVDOptions())) == 8
    assert td.SVDConv.arrangements((0, 1, 2), td.SVDOptions(split="spatial")) == [((0,), (1, 2))]
    assert td.SVDConv.arrangements((0, 1), td.SVDOptions.tensorly()) == [((0, 1), ())]
    assert td.SVDConv.arrangements((), td.SVDOptions()) == [((), ())]


def test_a_split_that_fits_is_found_where_the_first_does_not():
    conv = nn.Conv2d(64, 4, 3)  # rank 1: 64 · 9 + 4 = 580 in the channel split, 64 + 4 · 9 = 100 in its mirror
    assert td.SVDConv.from_conv(conv, ratio=0.8).axes != ((0, 1), ())
    with pytest.raises(td.CompressionError, match=r"rank 1, the smallest, keeps 100 of 2304 .* 0\.9565"):
        td.SVDConv.from_conv(conv, ratio=0.96)


def test_an_unknown_split_is_refused():
    with pytest.raises(td.CompressionError, match="split must be 'all', 'channel' or 'spatial', got 'width'"):
        td.SVDOptions(split="width")  # type: ignore[arg-type]


def test_there_is_no_rule_of_the_papers_for_it():
    with pytest.raises(td.CompressionError, match="no rank rule for method 'svd'"):
        td.SVDConv.from_conv(nn.Conv2d(8, 8, 3), ratio=0.5, rank="tensorly-torch")
