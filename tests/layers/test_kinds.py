"""Kinds of dense layers: those that are known, and a user's own."""

import json
from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.layers.kinds import KINDS, bias_of, kind_of, weight_of
from tests.layers.strategies import NAMES, a_spec, an_input, fresh


class Dense(nn.Module):
    """A linear layer as other libraries have it: other names, and the weight the other way round."""

    def __init__(self, units_in, units, offset=True):
        super().__init__()
        self.units_in, self.units = units_in, units
        self.kernel = nn.Parameter(torch.randn(units_in, units))
        self.offset = nn.Parameter(torch.randn(units)) if offset else None

    def forward(self, x):
        out = x @ self.kernel
        return out if self.offset is None else out + self.offset


@pytest.fixture
def dense():
    kind = td.register_layer_kind(
        Dense,
        arguments=lambda one: {
            "in_channels": one.units_in, "out_channels": one.units, "has_bias": one.offset is not None
        },
        build=lambda spec: Dense(spec.in_channels, spec.out_channels, spec.has_bias),
        weight="kernel",
        bias="offset",
        input_first=True,
    )  # fmt: skip
    yield kind
    KINDS.pop(kind.name, None)


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_tells_all_that_the_layer_needs(name):
    layer = fresh(a_spec(name))
    spec = td.ConvSpec.of(layer)
    assert spec == a_spec(name)
    assert kind_of(layer) is spec.adapter is KINDS[name]
    assert type(spec.build(device="meta", dtype=torch.float64)) is type(layer)
    assert weight_of(spec.build(device="meta", dtype=torch.float64)).dtype is torch.float64
    weight = weight_of(layer)
    assert torch.equal(spec.to_weight(spec.to_kernels(weight)), weight)
    assert spec.to_kernels(weight).shape == (spec.groups, *spec.kernel_shape)
    assert (bias_of(layer) is not None) == spec.has_bias


@pytest.mark.parametrize("name", ["Embedding", "TransposedLinear", "transformers.Conv1D"])
def test_the_kernels_are_what_the_layer_multiplies_by(name):
    if name not in NAMES:
        pytest.skip("needs transformers")
    layer = fresh(a_spec(name))
    spec, x = td.ConvSpec.of(layer), an_input(layer)
    rows = nn.functional.one_hot(x, spec.in_channels).double() if name == "Embedding" else x
    expected = rows @ spec.to_kernels(weight_of(layer))[0].mT
    bias = bias_of(layer)
    expected = expected if bias is None else expected + bias
    torch.testing.assert_close(layer(x), expected)


def test_an_embedding_keeps_how_it_is_trained():
    layer: Any = td.decompose(nn.Embedding(20, 8, padding_idx=3, sparse=True), "", "svd", 0.3)
    assert (layer[0].padding_idx, layer.padding_idx, layer.embedding_dim) == (3, 3, 8)
    layer(torch.tensor([1, 3])).sum().backward()
    found = layer[0].weight.grad.coalesce()
    assert found.indices().tolist() == [[1]]
    assert isinstance(layer[0], nn.Embedding)
    back: Any = td.restore(layer)
    assert (back.padding_idx, back.sparse, back.max_norm) == (3, True, None)
    assert layer.weight.shape == back.weight.shape == (20, 8)


@pytest.mark.parametrize(
    ("how", "message"), [({"max_norm": 1.0}, "max_norm"), ({"scale_grad_by_freq": True}, "scale_grad_by_freq")]
)
def test_embeddings_that_treat_single_rows_are_refused(how, message):
    model = nn.Sequential(nn.Embedding(20, 8, **how))
    for call in (lambda: td.decompose(model, "0", "svd", 0.3), lambda: td.SVDConv.from_conv(model[0], ratio=0.3)):
        with pytest.raises(td.CompressionError, match=f"its {message} .*; set it to"):
            call()
    assert message in td.refusals(model, "svd", 0.3)["0"]


def test_the_dense_weight_of_a_large_embedding_needs_no_square_of_its_words():
    layer = td.SVDConv(td.ConvSpec.of(nn.Embedding(400_000, 4)), 2)
    assert layer.weight.shape == (400_000, 4)


def test_attention_is_refused_with_what_to_do():
    model = nn.Sequential(nn.MultiheadAttention(16, 2), nn.Linear(16, 16))
    for name in ("0", "0.out_proj"):
        for subclasses in (False, True):
            with pytest.raises(td.CompressionError, match=r"MultiheadAttention.*; use an attention that is made"):
                td.decompose(model, name, "svd", 0.3, allow_subclasses=subclasses)
    assert list(td.refusals(model, "svd", 0.3)) == ["0.out_proj"]
    small: Any = td.decompose(model, "*", "svd", 0.3, on_refusal="skip")
    assert isinstance(small[1], td.SVDConv)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_layer_does_the_same_with_factors_fused_or_not(fused, training):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).train(training)
    x = torch.randn(2, 5, 16)
    small = td.decompose(model, ["linear1", "linear2"], "svd", 0.4)
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(fused)
        with torch.no_grad():
            torch.testing.assert_close(small(x), td.restore(small)(x))
            assert not torch.allclose(small(x), model(x))
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# --- a user's own ---------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Dense(12, 16), Dense(16, 10, offset=False)

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_everything_works_with_a_kind_of_ones_own(dense, tmp_path):
    torch.manual_seed(0)
    model, data = Net(), [torch.randn(64, 12)]
    x = data[0]
    assert list(td.refusals(model, "svd", 0.99)) == ["first", "second"]
    with pytest.warns(UserWarning, match="larger"):
        full = td.decompose(model, "second", "svd", rank=10)
    torch.testing.assert_close(full(x), model(x))
    small: Any = td.decompose(model, "*", "svd", 0.4)
    assert small.first.units == 16
    assert small.first.weight.shape == model.first.kernel.shape
    errors = td.approximation_errors(model, small, data=data)
    with torch.no_grad():
        expected = (small.first.weight - model.first.kernel).norm() / model.first.kernel.norm()
    assert errors["first"]["relative_weights"] == pytest.approx(float(expected))
    assert errors["first"]["relative_features"] > 0
    td.save(small, tmp_path / "small.safetensors")
    torch.testing.assert_close(td.load(tmp_path / "small.safetensors", into=Net())(x), small(x))
    dense_again = td.restore(small)
    assert type(dense_again.first) is Dense
    torch.testing.assert_close(dense_again(x), small(x))
    moments = td.input_moments(model, data)
    white = td.decompose(model, "*", "svd", 0.4, whiten=moments)
    assert (white(x) - model(x)).norm() < (small(x) - model(x)).norm()
    fitted = td.calibrate(small, data, model)
    assert (fitted(x) - model(x)).norm() < (small(x) - model(x)).norm()
    plan = td.plan(model, 0.4, methods=("svd",))
    assert [entry.spec.kind for entry in plan.layers] == ["Dense", "Dense"]
    assert td.Plan.from_json(plan.to_json()) == plan
    assert td.report(plan.apply(model), x, rounds=1).total.parameters[0] == sum(p.numel() for p in model.parameters())
    compressed = td.compress(model, 0.4, methods=("svd",), data=data)
    assert (compressed(x) - model(x)).norm() < model(x).norm()


def test_an_optimizer_goes_on_with_a_kind_of_ones_own(dense):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(4, 12)).sum().backward()
    optimizer.step()
    small = td.decompose(model, "first", "svd", 0.4)
    td.replace_parameters(optimizer, model, small)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in small.parameters()}
    back = td.restore(small)
    td.replace_parameters(optimizer, small, back)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in back.parameters()}


def test_a_subclass_of_a_kind_of_ones_own_is_a_subclass(dense):
    class Odd(Dense):
        pass

    with pytest.raises(td.CompressionError, match="Odd is a subclass of Dense whose forward may differ"):
        td.decompose(nn.Sequential(Odd(8, 8)), "0", "svd", 0.3)


def test_a_kind_that_is_not_known_any_more_is_named_with_those_that_are(dense):
    plan = td.plan(nn.Sequential(Dense(12, 16)), 0.4, methods=("svd",)).to_json()
    KINDS.pop("Dense")
    with pytest.raises(td.CompressionError, match=r"unknown kind of layer 'Dense'; known are Conv1d, .*Linear"):
        td.Plan.from_json(plan)
    with pytest.raises(
        td.CompressionError, match=r"Dense cannot be factorized; Linear, Conv1d, .*, Embedding, .* can\."
    ):
        td.decompose(nn.Sequential(Dense(12, 16)), "0", "svd", 0.4)


def test_a_taken_name_and_what_is_no_class_of_layers_are_refused(dense):
    how = {"arguments": dense.arguments, "build": dense.build}
    with pytest.raises(td.CompressionError, match="the kind of layer 'Linear' exists"):
        td.register_layer_kind(Dense, name="Linear", **how)
    with pytest.raises(td.CompressionError, match=r"is a class of nn\.Module"):
        td.register_layer_kind(Dense(2, 2), **how)  # type: ignore[arg-type]
    assert td.register_layer_kind(Dense, replace=True, **how).weight == "weight"


def test_plans_and_files_from_before_there_were_kinds_are_read(tmp_path):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3))
    old = json.loads(td.plan(model, 0.4).to_json())
    for entry in old["layers"]:
        del entry["spec"]["kind"], entry["spec"]["options"]
    assert td.Plan.from_json(json.dumps(old)) == td.plan(model, 0.4)
