"""Parameters that layers share."""

import pytest
import torch
from torch import nn

import tdcompress as td


def tied_model(**second):
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, **second))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("inplace", [False, True])
def test_cutting_a_tie_is_refused(inplace):
    model = tied_model()
    with pytest.raises(td.CompressionError, match=r"layer '0': it shares a parameter with '2.weight'; decompose both"):
        td.decompose(model, "0", "cp", 0.5, inplace=inplace)
    assert model[0].weight is model[2].weight
    assert "shares a parameter" in td.refusals(nn.Sequential(tied_to_linear()), "cp")["0.0"]


def tied_to_linear():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ParameterList())
    model[1].append(model[0].weight)
    return model


@pytest.mark.parametrize("method", ["cp", "svd", "tt", "tucker"])
@pytest.mark.parametrize("inplace", [False, True])
def test_layers_that_share_a_weight_share_their_factors(method, inplace):
    model = tied_model(stride=2)
    small = td.decompose(model, "*", method, 0.5, inplace=inplace)
    assert all(one.weight is two.weight for one, two in zip(small[0], small[2], strict=True))
    assert small[0].bias is not small[2].bias
    x = torch.randn(1, 8, 6, 6)
    assert torch.allclose(small(x), td.restore(small)(x), atol=1e-5)
    dense = td.restore(small)
    assert dense[0].weight is dense[2].weight
    with pytest.raises(td.CompressionError, match=r"it shares a parameter with '2.\w+.weight'"):
        td.restore(small, "0")


def test_a_shared_bias_stays_shared():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[1].bias = model[0].bias
    small = td.decompose(model, "*", "tucker", 0.5)
    assert small[0].bias is small[1].bias
    dense = td.restore(small)
    assert dense[0].bias is dense[1].bias


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_weights_are_computed_from_cannot_be_shared():
    model = nn.Sequential(*(nn.utils.weight_norm(nn.Conv2d(8, 8, 3)) for _ in range(2)))
    model[1].weight_v = model[0].weight_v
    with pytest.raises(td.CompressionError, match=r"layer '0': it shares a parameter with '1.weight_v'"):
        td.decompose(model, "*", "tucker", 0.5, parametrized="bake")


def test_factors_that_cannot_be_shared_are_refused():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3))
    model[1].weight = model[0].weight
    with pytest.raises(td.CompressionError, match=r"layer '1': it shares its weight with '0', but"):
        td.decompose(model, "*", "tucker", 0.5)
    assert model[1].weight is model[0].weight
