"""restore(): the way back."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td
from tests.drawing import each_once
from tests.layers.strategies import for_kernels


def a_model():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, 2), nn.Flatten(), nn.Linear(968, 4))


X = torch.randn(2, 3, 7, 7)


@pytest.mark.parametrize(("method", "inplace"), each_once(product(for_kernels(), [False, True])))
def test_dense_layers_do_what_the_factorized_ones_did(method, inplace):
    model: Any = a_model().eval()
    small = td.decompose(model, "*", method, 0.3)
    expected, stages = small(X), list(small.modules())
    dense: Any = td.restore(small, inplace=inplace)
    assert [type(layer) for layer in dense] == [type(layer) for layer in model]
    assert torch.allclose(dense(X), expected, atol=1e-4)
    assert (dense is small) == inplace
    if not inplace:
        assert list(small.modules()) == stages
        assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in dense.parameters()}
    assert [name for name, _ in dense.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert not any(module.training for module in dense.modules())


def test_selected_layers_only_and_the_model_itself():
    small: Any = td.decompose(a_model(), "*", "cp", 0.3)
    assert [type(layer).__name__ for layer in td.restore(small, "0").children()][:3] == ["Conv2d", "ReLU", "CPConv"]
    assert type(td.restore(small[0])) is nn.Conv2d
    by_predicate: Any = td.restore(small, lambda name, module: module.spec.transposed)
    assert [type(layer).__name__ for layer in by_predicate][:3] == ["CPConv", "ReLU", "ConvTranspose2d"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (None, "there is no factorized layer in the model"),
        ("0", "layer '0': Conv2d is not factorized; none in it are"),
        ("nowhere", "the model has no layer 'nowhere'"),
        ("*", "matches no factorized layer"),
    ],
)
def test_where_nothing_is_factorized_nothing_is_restored(layer, message):
    with pytest.raises(td.CompressionError, match=message):
        td.restore(a_model(), layer)


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_are_refused_or_kept_and_those_of_stages_refused(inplace):
    small: Any = td.decompose(a_model(), "0", "tucker", 0.3)
    seen = []
    small[0].register_forward_hook(lambda module, *args: seen.append(type(module)))
    with pytest.raises(td.CompressionError, match="layer '0': it carries hooks"):
        td.restore(small, inplace=inplace)
    small[0][1].register_forward_hook(lambda *args: None)
    with pytest.raises(td.CompressionError, match="layer '0': layer 'core': it carries forward or backward hooks"):
        td.restore(small, hooks="keep", inplace=inplace)
    small[0][1]._forward_hooks.clear()
    td.restore(small, hooks="keep", inplace=inplace)(X)
    assert seen == [nn.Conv2d]
