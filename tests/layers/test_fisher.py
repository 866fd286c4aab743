"""Decompositions by what the output of the model makes of the features."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tdcompress as td
from tdcompress.methods import METHODS
from tests.drawing import cases
from tests.layers.strategies import an_input, fresh, full_rank, kinds, side, specs

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:.* makes the layer larger"),
]


def factors_of(layer, inputs, joint=True):
    """With gradients some of whose directions matter ten times as much as others."""
    factors = td.FisherFactors(td.ConvSpec.of(layer), joint=joint)
    factors.update_inputs(inputs)
    with torch.no_grad():
        features = layer(inputs)
    generator = torch.Generator().manual_seed(7)
    gradients = torch.randn(features.shape, generator=generator, dtype=torch.float64).to(features)
    axis = 1 if td.ConvSpec.of(layer).kernel_size else -1
    gradients = gradients.movedim(axis, -1) * torch.logspace(0, -1, features.shape[axis]).to(features)
    factors.update_gradients(gradients.movedim(-1, axis))
    factors.rows = len(inputs)
    return factors


@pytest.mark.parametrize("method", sorted(METHODS))
@cases(10)
@given(data=st.data())
def test_at_full_rank_it_changes_nothing(method, data):
    kind = data.draw(st.sampled_from([k for k in kinds(method) if k != "Embedding"]))
    layer = fresh(data.draw(specs(kind, most=4 if side(method) > 1 else 1)))
    factors = factors_of(layer, an_input(layer), joint=data.draw(st.booleans()))
    result = METHODS[method].from_conv(layer, rank=full_rank(layer, method), whiten=factors)
    torch.testing.assert_close(result.weight, layer.weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_svd_foresees_the_least_loss_of_its_rank(groups, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(4 * groups, 10 * groups, 3, groups=groups, bias=bias).double()
    inputs = torch.randn(40, 4 * groups, 7, 7).double() * torch.logspace(0, -1, 4 * groups)[:, None, None] + 0.3
    factors = factors_of(conv, inputs)
    moments = td.InputMoments(td.ConvSpec.of(conv), joint=True)
    moments.update(inputs)
    solver = td.SVDOptions(split="channel")
    losses = [
        factors.loss_between(conv, td.SVDConv.from_conv(conv, rank=4, solver=solver, whiten=how))
        for how in (None, moments, factors)
    ]
    assert losses[2] < 0.9 * min(losses[:2])
    whitening = factors.whitening(centred=bias)
    rows = whitening.with_outputs(conv.weight.detach().reshape(groups, 10, -1) @ whitening.joint_root)
    squares = torch.linalg.svdvals(rows).square()
    share = float(squares[:, 4:].sum() / squares.sum())
    assert losses[2] == pytest.approx(share * factors.loss_of_all(conv.weight, centred=bias), rel=0.01)


@pytest.mark.parametrize("kind", ["Linear", "Conv2d", "ConvTranspose2d", "ConvTranspose1d"])
def test_the_roots_give_the_loss_but_for_a_scale(kind):
    """½ tr(G D A Dᵀ) ∝ ‖Rᵀ D L‖² with the factors taken as channels ⊗ positions, for every change D alike."""
    torch.manual_seed(0)
    layer: Any = {
        "Linear": lambda: nn.Linear(6, 8),
        "Conv2d": lambda: nn.Conv2d(6, 8, 3, groups=2),
        "ConvTranspose2d": lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2, padding=1),
        "ConvTranspose1d": lambda: nn.ConvTranspose1d(6, 8, 5, padding=2, stride=3, output_padding=2),
    }[kind]().double()
    spec = td.ConvSpec.of(layer)
    inputs = torch.randn(50, 6, *[9] * len(spec.kernel_size)).double()
    inputs = inputs.movedim(1, -1) * torch.logspace(0, -1, 6)
    factors = factors_of(layer, inputs.movedim(-1, 1), joint=False)
    axes = (spec.kernel_axes,) if spec.kernel_axes else ()
    whitening = factors.whitening(centred=False).along(axes, whole_patches=False)
    ratios = []
    for _ in range(6):
        change = torch.randn_like(layer.weight)
        seen = whitening.applied(spec.arranged(change, axes))
        ratios.append(factors.loss(change) / float(seen.square().sum()))
    assert ratios == pytest.approx([ratios[0]] * 6, rel=0.02)  # the ridge is a thousandth of the mean eigenvalue


def test_factors_of_another_layer_are_refused():
    factors = factors_of(nn.Linear(6, 8).double(), torch.ones(2, 6).double())
    with pytest.raises(td.CompressionError, match="moments are of another layer"):
        td.SVDConv.from_conv(nn.Linear(6, 9), rank=2, whiten=factors)
    with pytest.raises(td.CompressionError, match=r"takes InputMoments or FisherFactors.*got a Tensor"):
        td.SVDConv.from_conv(nn.Linear(6, 9), rank=2, whiten=torch.ones(6, 6))  # type: ignore[arg-type]
    with pytest.raises(td.CompressionError, match="nothing was seen"):
        td.FisherFactors(td.ConvSpec(6, 8)).loss(torch.ones(8, 6))
