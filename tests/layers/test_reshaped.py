"""Layers that read a matrix through a grid: shapes, costs, what they take, and what is done with them in models."""

from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress import ranks
from tdcompress.layers.reshapes import Regroup
from tdcompress.methods import METHODS
from tests.drawing import more
from tests.layers.strategies import error_of, for_kernels

METHOD_NAMES = [method for method in METHODS if method not in for_kernels()]
OPTIONS = {"kronecker": td.KroneckerOptions, "ttm": td.TTMOptions, "blr": td.BLROptions}


def linear(inner=48, out=36, **how):
    torch.manual_seed(0)
    return nn.Linear(inner, out, **how)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_best_shape_loses_no_more_than_the_balanced_one_or_one_that_is_given(method):
    layer, kind, options = linear(), METHODS[method], OPTIONS[method]
    best = kind.from_conv(layer, ratio=0.5)
    for reshape in ("balanced", ((6, 6), (8, 6)), td.Reshape((4, 9), (4, 12), strided_columns=True)):
        other = kind.from_conv(layer, ratio=0.5, solver=options(reshape=reshape))
        assert error_of(best) <= error_of(other) + 1e-6
        assert max(best.ratio, other.ratio) < 0.75
    assert other.axes == ((4, 9), (4, 12), (0, 1))
    again = kind.from_conv(layer, rank=other.ranks, axes=other.axes)
    assert torch.equal(again.weight, other.weight)


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("lead", [(), (7,), (2, 3), (2, 3, 4)])
def test_features_may_have_any_dimensions_before_them(method, lead):
    layer = METHODS[method].from_conv(linear(), ratio=0.5)
    x = torch.randn(*lead, 48)
    torch.testing.assert_close(layer(x), layer.to_conv()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_multiply_adds_are_what_a_forward_makes(method):
    layer = METHODS[method].from_conv(linear(), ratio=0.5)
    found = td.report(nn.Sequential(layer), torch.zeros(10, 48), rounds=1).layers[0]
    rows, columns = layer.axes[:2]
    shape = td.Reshape(rows, columns)
    count = {
        "kronecker": ranks.kronecker_multiply_adds,
        "ttm": ranks.ttm_multiply_adds,
        "blr": ranks.blr_parameters,
    }[method]
    assert found.cost.multiply_adds == (10 * 48 * 36, 10 * count(shape, layer.ranks))
    assert found.cost.parameters[1] == sum(stage.weight.numel() for stage in layer.weighted) + 36


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_only_matrices_of_features_are_taken(method):
    kind = METHODS[method]
    with pytest.raises(td.CompressionError, match=rf"{method} is for matrices.* this Conv2d is 3×1; use a method for"):
        kind.from_conv(nn.Conv2d(8, 8, (3, 1)), ratio=0.5)
    with pytest.raises(td.CompressionError, match=r"reads features through a grid, and the Embedding .* 'svd'"):
        kind.from_conv(nn.Embedding(16, 16), ratio=0.5)
    with pytest.raises(td.CompressionError, match=r"cannot make this layer smaller|no shape for a matrix of 5 × 7"):
        kind.from_conv(nn.Linear(7, 5), ratio=0.2)
    with pytest.raises(td.CompressionError, match="takes batches with 1 spatial axes"):
        kind.from_conv(nn.Conv1d(16, 16, 1), ratio=0.4)(torch.zeros(16, 9))
    if kind.form is td.FactorizedConv.form:  # the others are tensorly's tensor-train matrices
        with pytest.raises(td.CompressionError, match="tensorly has no class"):
            kind.from_conv(linear(), ratio=0.5).to_tensorly()


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (((6, 6), (8, 6)), "are no arrangement"),
        (((6, 6), (8, 6), (0, 2)), "are no arrangement"),
        (((6, 6, 1, 1, 1), (8, 6, 1, 1, 1), (0, 0)), "at most [24] factors of the rows and as many of the columns"),
        (((6, 6), (48,), (0, 0)), "at most [24] factors of the rows and as many of the columns"),
        (((6, 5), (8, 6), (0, 0)), "is for a matrix of 30 × 48, and this one is 36 × 48"),
    ],
)
def test_axes_that_are_no_reshape_are_refused(method, axes, message):
    with pytest.raises(td.CompressionError, match=message):
        METHODS[method].from_conv(linear(), rank=1, axes=axes)


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10)).eval()


@pytest.mark.parametrize("objective", ["macs", *more("parameters")])
def test_a_plan_prices_them_by_parameters_or_multiply_adds(objective):
    model, x = perceptron(), torch.randn(64, 32)
    plan = td.plan(
        model,
        0.6,
        layers=["0", "4"],
        methods=("svd", *METHOD_NAMES),
        objective=objective,
        example_inputs=x[:1],
        progress=False,
    )
    assert {option.method for entry in plan.layers for option in entry.options} >= set(METHOD_NAMES)
    small = plan.apply(model)
    report = td.report(small, x[:1], rounds=1).total
    cost = report.multiply_adds if objective == "macs" else report.parameters
    assert cost is not None
    before, after = cost
    left = 48 * 48 + (0 if objective == "macs" else 48 + 48 + 10)  # the layer between, and biases
    assert after - left <= 0.4 * (before - left)
    assert torch.isfinite(small(x)).all()
    again = type(plan).from_json(plan.to_json()).apply(model)
    assert torch.equal(again(x), small(x))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_compressed_with_data_the_output_is_nearer(method, tmp_path):
    model, x = perceptron(), torch.randn(256, 32) @ torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    plain = td.decompose(model, "*", method, 0.5, skip="4", progress=False)
    moments = td.input_moments(model, x, ["0", "2"], progress=False)
    white = td.decompose(model, "*", method, 0.5, skip="4", whiten=moments, progress=False)
    with torch.no_grad():
        errors = [float((small(x) - model(x)).norm()) for small in (plain, white)]
        fitted = td.calibrate(white, [x], model, progress=False)
        errors.append(float((fitted(x) - model(x)).norm()))
    assert errors[2] < errors[1] < errors[0]
    td.save(fitted, tmp_path / "small.safetensors")
    assert torch.equal(td.load(tmp_path / "small.safetensors", into=perceptron())(x), fitted(x))
    dense: Any = td.restore(fitted)
    assert all(type(dense[place]) is nn.Linear for place in (0, 2))
    torch.testing.assert_close(dense(x), fitted(x), rtol=1e-3, atol=1e-3)


def feature_error(layer, small, moment):
    change = (layer.weight - small.weight).detach().double()
    return float((change @ moment @ change.mT).trace())


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_with_inputs_the_shape_is_the_one_of_the_best_few_that_loses_least_of_the_features(method):
    kind, layer = METHODS[method], linear(48, 36)
    mixing = torch.randn(48, 48, generator=torch.Generator().manual_seed(3)) * torch.linspace(2, 0.05, 48)
    inputs = torch.randn(512, 48, generator=torch.Generator().manual_seed(4)) @ mixing
    moments = td.InputMoments(td.ConvSpec.of(layer))
    moments.update(inputs)
    whitening, options = moments.whitening(centred=True), kind.options()
    pairs = kind.proposals(td.ConvSpec.of(layer), layer.weight.detach(), whitening, 864, options)
    assert len({axes for axes, _ in pairs}) == 4
    assert pairs[0] in kind.proposals(td.ConvSpec.of(layer), layer.weight.detach(), None, 864, options)
    tried = [kind.from_conv(layer, rank=rank, axes=axes, whiten=moments) for axes, rank in pairs]
    moment = torch.cov(inputs.double().T)
    losses = [feature_error(layer, one, moment) for one in tried]
    best = kind.from_conv(layer, ratio=0.5, whiten=moments)
    assert feature_error(layer, best, moment) == pytest.approx(min(losses), rel=1e-3)
    assert min(losses) < 0.999 * max(losses)


def test_layers_that_share_a_weight_share_the_factors_but_not_from_the_other_end():
    model = nn.Sequential(linear(48, 36), nn.ReLU(), nn.Linear(36, 48), nn.ReLU(), nn.Linear(48, 36))
    model[4].weight = model[0].weight
    small: Any = td.decompose(model, "*", "kronecker", 0.5, progress=False)
    assert small[0].weighted[0].weight is small[4].weighted[0].weight
    assert small[0].bias is not small[4].bias
    x = torch.randn(3, 48)
    assert small(x).shape == (3, 36)
    turned = nn.Sequential(linear(48, 36), td.TransposedLinear(36, 48))
    turned[1].weight = turned[0].weight
    with pytest.raises(td.CompressionError, match="factors of kronecker cannot be read from the other end"):
        td.decompose(turned, "*", "kronecker", 0.5, progress=False)


def test_hooks_on_a_regrouping_are_refused_by_restore():
    small = td.decompose(nn.Sequential(linear()), "0", "blr", 0.5)
    next(module for module in small.modules() if isinstance(module, Regroup)).register_forward_hook(lambda *_: None)
    with pytest.raises(td.CompressionError, match="hook"):
        td.restore(small)


def test_a_grouped_linear_is_a_block_diagonal_one():
    layer = td.GroupedLinear(6, 8, groups=2)
    dense = torch.block_diag(layer.weight[:4], layer.weight[4:])
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer(x), x @ dense.T + layer.bias)
    with pytest.raises(td.CompressionError, match="4 groups do not divide 6 and 8 features"):
        td.GroupedLinear(6, 8, groups=4)


def test_of_shapes_that_lose_the_same_the_smallest_is_taken(monkeypatch):
    kind, layer = METHODS["ttm"], linear(16, 12)
    shapes = [((1, 1, 12), (2, 4, 2), (0, 0)), ((1, 12), (8, 2), (0, 0))]
    pairs = list(zip(shapes, [(2, 4), (4,)], strict=True))  # a bond of full rank loses nothing
    monkeypatch.setattr(kind, "proposals", lambda *asked: pairs)
    tried = [kind.from_conv(layer, rank=rank, axes=axes) for axes, rank in pairs]
    sizes = [sum(stage.weight.numel() for stage in one.weighted) for one in tried]
    assert error_of(tried[0]) == pytest.approx(error_of(tried[1]))
    assert sizes[1] < sizes[0]
    assert kind.from_conv(layer, ratio=0.1).axes == shapes[1]
