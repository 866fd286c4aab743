"""The six errors against their definitions, and what surrounds them."""

import math

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.metrics import METRICS, RunningMean, get_metrics

WEIGHTS = ["absolute_weights", "relative_weights", "scaled_weights"]
FEATURES = ["absolute_features", "relative_features", "scaled_features"]


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.Dropout(0.5)
        )


@pytest.fixture
def small(model):
    return td.decompose(model, ["0", "3"], "tucker", 0.4)


@pytest.fixture
def data():
    return torch.randn(10, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def test_the_errors_are_the_papers(model, small, data):
    errors = td.approximation_errors(model, small, data=data)
    assert list(errors) == ["0", "3"]
    assert list(errors["0"]) == WEIGHTS + FEATURES
    kernel, near = model[3].weight.double(), small[3].weight.double()
    distance = float((kernel - near).detach().norm())
    assert errors["3"]["absolute_weights"] == pytest.approx(distance)
    assert errors["3"]["relative_weights"] == pytest.approx(distance / float(kernel.detach().norm()))
    assert errors["3"]["scaled_weights"] == pytest.approx(distance / kernel.numel())
    model.eval()
    with torch.no_grad():
        inputs = model[:3](data)  # what layer 3 sees in the original, not in the compressed model
        before, after = model[3](inputs).double(), small[3](inputs).double()
    norms = [float((b - a).norm()) for b, a in zip(before, after, strict=True)]
    sizes = [float(b.norm()) for b in before]
    assert errors["3"]["absolute_features"] == pytest.approx(sum(norms) / 10, rel=1e-5)
    relative = sum(n / s for n, s in zip(norms, sizes, strict=True)) / 10
    assert errors["3"]["relative_features"] == pytest.approx(relative, rel=1e-5)
    assert errors["3"]["scaled_features"] == pytest.approx(sum(norms) / 10 / before[0].numel(), rel=1e-5)


def test_weight_errors_alone_need_no_data(model, small):
    assert list(td.approximation_errors(model, small)["3"]) == WEIGHTS
    assert list(td.approximation_errors(model, small, metrics=["relative_weights"])["3"]) == ["relative_weights"]


@pytest.mark.parametrize("shape", ["tensors", "pairs", "lists", "dicts", "one tensor", "generator"])
def test_batches_of_any_size_and_form_give_the_same(model, small, data, shape):
    expected = td.approximation_errors(model, small, metrics=FEATURES, data=[data])
    parts = data.split([3, 3, 3, 1])
    batches = {
        "tensors": list(parts),
        "pairs": [(part, torch.zeros(len(part))) for part in parts],
        "lists": [[part, None] for part in parts],
        "dicts": [{"input": part} for part in parts],
        "one tensor": data,
        "generator": (part for part in parts),
    }[shape]
    found = td.approximation_errors(model, small, metrics=FEATURES, data=batches)
    for layer, errors in expected.items():
        assert found[layer] == pytest.approx(errors, rel=1e-5)


def test_both_models_are_left_as_they_were(model, small, data):
    model.train()
    model[1].eval()
    modes = [module.training for module in (*model.modules(), *small.modules())]
    statistics = model[1].running_mean.clone()
    td.approximation_errors(model, small, data=data)
    assert [module.training for module in (*model.modules(), *small.modules())] == modes
    assert torch.equal(model[1].running_mean, statistics)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_hooks_are_removed_when_the_data_fails(model, small):
    with pytest.raises(RuntimeError):
        td.approximation_errors(model, small, data=[torch.randn(1, 99, 9, 9)])
    assert not any(module._forward_hooks for module in model.modules())


def test_memory_does_not_grow_with_the_data(model, small):
    alive = []

    def batches():
        for seed in range(20):
            batch = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
            alive.append(__import__("weakref").ref(batch))
            yield batch
            del batch
            assert sum(ref() is not None for ref in alive) <= 2

    td.approximation_errors(model, small, data=batches())


def test_exact_layers_have_no_error(model, data):
    with pytest.warns(UserWarning, match="larger"):
        small = td.decompose(model.double(), "3", "tucker", rank=(12, 8))
    errors = td.approximation_errors(model, small, data=data.double())["3"]
    assert all(error < 1e-12 for error in errors.values())


def test_zero_over_zero_is_no_error():
    conv = nn.Conv2d(4, 4, 3, bias=False)
    nn.init.zeros_(conv.weight)
    errors = td.approximation_errors(conv, td.decompose(conv, "", "cp", 0.5), data=torch.ones(2, 4, 5, 5))
    assert set(errors[""].values()) == {0.0}


def test_a_users_metrics_are_computed_and_averaged(model, small, data):
    try:

        @td.register_metric("largest_weight", on="weights")
        def largest_weight(original, approximation):
            return (original - approximation).abs().max()

        @td.register_metric("largest_feature", on="features")
        def largest_feature(original, approximation):
            return (original - approximation).flatten(1).abs().amax(1)

        errors = td.approximation_errors(model, small, metrics=["largest_feature", "largest_weight"], data=data)["3"]
        assert list(errors) == ["largest_feature", "largest_weight"]
        expected = (model[3].weight.double() - small[3].weight.double()).abs().max()
        assert errors["largest_weight"] == pytest.approx(expected.item())
        assert "largest_feature" in td.approximation_errors(model, small, data=data)["0"]
        with pytest.raises(td.CompressionError, match="'largest_weight' exists"):
            td.register_metric("largest_weight", on="weights")
    finally:
        METRICS.pop("largest_weight", None)
        METRICS.pop("largest_feature", None)


def test_a_feature_metric_must_return_one_number_a_sample(model, small, data):
    try:
        td.register_metric("wrong", on="features")(lambda original, approximation: original.sum())
        with pytest.raises(td.CompressionError, match=r"'wrong' must return one number a sample, shape \(10,\)"):
            td.approximation_errors(model, small, metrics=["wrong"], data=data)
    finally:
        METRICS.pop("wrong", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["relative_weight"]}, "unknown metric 'relative_weight'.*Did you mean 'relative_weights'"),
        ({"metrics": ["relative_features"]}, "relative_features need inputs"),
        ({"data": []}, "the data is empty"),
        ({"data": iter(())}, "the data is empty"),
        ({"data": [3]}, "a batch of data must be a tensor.*got int"),
    ],
)
def test_bad_arguments_are_refused(model, small, change, message):
    with pytest.raises(td.CompressionError, match=message):
        td.approximation_errors(model, small, **change)


def test_models_that_do_not_belong_together_are_refused(model, small):
    with pytest.raises(td.CompressionError, match="no layer of the compressed model is factorized"):
        td.approximation_errors(model, model)
    with pytest.raises(td.CompressionError, match=r"layer '0' stands for .* there is a ReLU"):
        td.approximation_errors(nn.Sequential(nn.ReLU()), small)
    with pytest.raises(td.CompressionError, match="there is nothing"):
        td.approximation_errors(nn.Linear(2, 2), small)


def test_on_must_be_known():
    with pytest.raises(td.CompressionError, match="on must be 'weights', 'features' or 'outputs', got 'bias'"):
        td.register_metric("x", on="bias")  # type: ignore[arg-type]


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(td.CompressionError, match="no sample was seen"):
        RunningMean(get_metrics(FEATURES)).compute()


def test_half_precision_models_are_measured_in_float64():
    conv = nn.Conv2d(16, 16, 3, dtype=torch.float16)
    errors = td.approximation_errors(conv, td.decompose(conv, "", "tucker", 0.5))[""]
    assert all(math.isfinite(error) and error > 0 for error in errors.values())
