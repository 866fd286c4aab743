"""The tensor train's arrangements: any order of the spatial axes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tdcompress as td
from tests.drawing import cases
from tests.layers.strategies import an_input, error_of, layers

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@cases(40)
@given(conv=layers("tt"), data=st.data())
def test_any_order_of_the_axes_keeps_the_contract(conv, data):
    spec = td.ConvSpec.of(conv)
    axes = data.draw(st.sampled_from(td.TTConv.arrangements(spec.kernel_axes, td.TTOptions())))
    layer = td.TTConv(spec, 1, axes, dtype=torch.float64)
    x = an_input(conv)
    assert torch.allclose(layer(x), layer.to_conv()(x), rtol=0, atol=1e-10)


def test_the_better_order_of_the_axes_is_taken_unless_told_or_a_rank_is_given():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(8, 8, (5, 3))
        conv.weight.data += 3 * torch.randn(1, 1, 5, 1)
    best = td.TTConv.from_conv(conv, ratio=0.6)
    given_order = td.TTConv.from_conv(conv, ratio=0.6, solver=td.TTOptions(orders="given"))
    assert given_order.axes == ((0,), (1,))
    assert error_of(best) <= error_of(given_order)
    assert td.TTConv.from_conv(conv, rank=(3, 3, 3)).axes == ((0,), (1,))
