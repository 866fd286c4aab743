"""Hierarchical Tucker as a layer: what is folded, what it costs, and what it is good for."""

from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.decompositions.algebra import relative_error
from tdcompress.methods import METHODS
from tests.layers.strategies import error_of
from tests.tensors import random

pytestmark = pytest.mark.filterwarnings("ignore:.*makes the layer larger")


def a_conv(kernel, **how):
    conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2:], dtype=torch.float64, **how)
    with torch.no_grad():
        conv.weight.copy_(kernel)
    return conv


def test_a_kernel_whose_channels_share_two_filters_is_met_where_tucker_loses():
    conv = a_conv(torch.einsum("oik,khw->oihw", random((12, 10, 2)), random((2, 3, 3), seed=1)), padding=1)
    found, tucker = (METHODS[method].from_conv(conv, ratio=0.5) for method in ("ht", "tucker"))
    assert found.ranks[2] == 2
    assert error_of(found) < 1e-10
    assert error_of(tucker) > 0.1


def test_with_all_filters_it_is_tucker():
    conv = nn.Conv2d(10, 12, 3)
    ours, tucker = td.HTConv.from_conv(conv, rank=(5, 4, 9)), td.TuckerConv.from_conv(conv, rank=(5, 4))
    assert error_of(ours) == pytest.approx(error_of(tucker), rel=1e-5)


def test_every_channel_of_a_group_goes_through_the_groups_own_filters():
    layer: Any = td.HTConv(td.ConvSpec.of(nn.Conv2d(8, 6, 3, groups=2, padding=1)), (3, 4, 2), dtype=torch.float64)
    folded = layer[:2](random((5, 8, 7, 6)))
    assert folded.shape == (20, 2, 7, 6)  # four channels of each of the two groups, in the samples
    inner = layer.input(random((5, 8, 7, 6))).unflatten(1, (2, 4))
    filtered = layer[:4](random((5, 8, 7, 6))).unflatten(1, (2, 4, 2))
    for group, kernels in enumerate(layer.filters.weight.chunk(2)):
        for channel in range(4):
            expected = nn.functional.conv2d(inner[:, group, channel, None], kernels, padding=1)
            torch.testing.assert_close(filtered[:, group, channel], expected)


@pytest.mark.parametrize("build", [nn.Conv2d, nn.ConvTranspose2d])
def test_multiply_adds_are_those_of_the_stages(build):
    layer = td.HTConv.from_conv(build(16, 12, 3, padding=1), rank=(5, 6, 4))
    found = td.report(nn.Sequential(layer), torch.zeros(10, 16, 8, 8), rounds=1).layers[0].cost.multiply_adds
    pixels = 10 * 8 * 8
    assert found == (pixels * 16 * 12 * 9, pixels * (16 * 6 + 6 * 4 * 9 + 6 * 4 * 5 + 5 * 12))


@pytest.mark.parametrize("filters", [1, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_is_kept_however_few_filters_there_are(filters, layout):
    conv = nn.Conv2d(16, 12, 3, padding=1).to(memory_format=layout)  # type: ignore[call-overload]
    layer, x = td.HTConv.from_conv(conv, rank=(5, 6, filters)), torch.randn(2, 16, 8, 8)
    x = x.contiguous(memory_format=layout)
    assert layer(x).stride() == conv(x).stride()


@pytest.mark.parametrize("rank", [(20, 5, 4), (5, 40, 3), (60, 40, 20), (2, 3, 12), (16, 1, 30)])
@pytest.mark.parametrize("channels", [(2, 30), (30, 2), (6, 8)])
def test_what_a_tree_cannot_fill_is_cut_without_loss(channels, rank):
    out, inner = channels
    conv = a_conv(random((out, inner, 3, 2)), stride=2)
    core = random(rank)
    factors = [random((size, r), seed=r) for size, r in zip((out, inner, 6), rank, strict=True)]
    layer = td.HTConv.from_tensorly((core, factors), like=conv)
    limits = td.HTConv.full_rank(layer.spec.modes(layer.axes))
    assert all(ours <= limit for ours, limit in zip(layer.ranks, limits, strict=True))
    if all(r <= limit for r, limit in zip(rank, limits, strict=True)):
        assert layer.ranks == rank
    expected = torch.einsum("pqs,op,iq,ks->oik", core, *factors).reshape(conv.weight.shape)
    assert relative_error(expected, layer.weight.detach()) <= 1e-10


def test_a_kernel_with_its_axes_apart_is_no_tree():
    conv = nn.Conv2d(6, 8, 3)
    found = td.TuckerConv.from_conv(conv, rank=(4, 3)).to_tensorly()
    with pytest.raises(td.CompressionError, match=r"shape \(8, 6, 9\), \(out, in, positions of the kernel\)"):
        td.HTConv.from_tensorly(found, like=conv)
    with pytest.raises(td.CompressionError, match="ht is not made of a CPTensor"):
        td.HTConv.from_tensorly((None, [torch.ones(n, 2) for n in (8, 6, 9)]), like=conv)
    with pytest.raises(td.CompressionError, match="tensorly-torch's one by one"):
        td.to_tltorch(td.HTConv.from_conv(conv, rank=2))


def test_images_without_a_batch_are_refused():
    layer = td.HTConv.from_conv(nn.Conv2d(8, 8, 3), rank=2)
    with pytest.raises(td.CompressionError, match="add a batch axis"):
        layer(torch.zeros(8, 5, 5))
