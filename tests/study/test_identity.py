import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.errors import CompressionError
from tdcompress.metrics import METRICS
from tdcompress.study.identity import data_digest, model_digest, solver_fields
from tests.study.functions import evaluate, finetune, images, network, study


def keys(**changes):
    return [trial.key for trial in study(**changes).trials()]


def other_weights():
    model = network()
    with torch.no_grad():
        model[0].bias[0] = torch.nextafter(model[0].bias[0], torch.tensor(1e9))
    return model


CHANGES = {
    "one bit of one weight": {"model": other_weights()},
    "a buffer": {"model": network(seed=3)},
    "a solver's option": {"methods": dict.fromkeys(("cp", "tucker", "tt")) | {"tucker": td.TuckerOptions(max_iter=3)}},
    "the metrics": {"metrics": ["relative_weights"]},
    "the data of feature metrics": {"data": images(4, seed=3)},
    "the rule for ranks": {"ranks": "tensorly-torch"},
    "fine-tuning": {"finetune": finetune},
    "what the user calls another version": {"version": "2"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_the_result_changes_the_key(what):
    before, after = keys(), keys(**CHANGES[what])
    untouched = sum(one == other for one, other in zip(before, after, strict=True))
    assert untouched == (16 if what == "a solver's option" else 0)


@pytest.mark.parametrize(
    "change",
    [
        {"evaluate": lambda model: evaluate(model)},
        {"layers": lambda name, module: isinstance(module, nn.Conv2d)},
        {"metrics": list(reversed(METRICS))},
        {"model": network().to(memory_format=torch.channels_last)},
        {"model": network().train()},
        {"methods": {"cp": None, "tucker": None, "tt": None}},
    ],
)
def test_what_does_not_change_the_result_does_not_change_the_key(change):
    assert keys(**change) == keys()


def test_a_larger_grid_keeps_its_old_trials():
    grown = keys(runs=3, ratios=(0.3, 0.45, 0.6))
    assert set(keys()) < set(grown)


def test_data_counts_only_for_metrics_on_features():
    weights = ["relative_weights"]
    assert keys(metrics=weights, data=images(2)) == keys(metrics=weights, data=images(3))


def test_a_metric_s_version_counts(monkeypatch):
    before = keys()
    monkeypatch.setitem(METRICS, "relative_weights", td.metrics.Metric("relative_weights", "weights", abs, 2))
    assert not set(before) & set(keys())


def test_runs_that_cannot_differ_have_one_key():
    random = {"cp": td.CPOptions(starts=("random",)), "tucker": None, "tensorly-cp": None}
    del random["tensorly-cp"]
    by_method = {}
    for trial in study(methods=random, runs=3).trials():
        by_method.setdefault((trial.method, trial.layer, trial.ratio), set()).add(trial.key)
    assert {len(found) for (method, *_), found in by_method.items() if method == "cp"} == {3}
    assert {len(found) for (method, *_), found in by_method.items() if method == "tucker"} == {1}


def test_fine_tuned_runs_differ_but_share_a_deterministic_decomposition():
    trials = [trial for trial in study(finetune=finetune).trials() if trial.method == "tt" and trial.ratio == 0.3]
    assert len({trial.key for trial in trials}) == 4
    assert len({trial.decomposition for trial in trials}) == 2  # one a layer


@pytest.mark.parametrize(
    ("method", "solver", "fixed"),
    [
        ("cp", None, True),
        ("cp", td.CPOptions(starts=("random",)), False),
        ("cp", td.CPOptions(starts=("orthogonal", "random")), False),
        ("cp", "tensorly", False),
        ("tucker", "tensorly", True),
        ("tt", None, True),
    ],
)
def test_methods_know_whether_they_draw(method, solver, fixed):
    kind = td.methods.get_method(method)
    assert kind.deterministic(solver) == fixed
    conv = network()[0]
    if fixed:
        first, second = (kind.from_conv(conv, rank=2, solver=solver, seed=seed).weight for seed in (0, 1))
        assert torch.equal(first, second)


def test_a_method_of_the_user_s_is_taken_to_draw():
    assert not td.FactorizedConv.deterministic(None)


def test_digests_do_not_depend_on_memory():
    model = network()
    copied = network()
    copied.load_state_dict(model.state_dict())
    assert model_digest(model) == model_digest(copied.to(memory_format=torch.channels_last))
    assert model_digest(model) != model_digest(nn.Sequential(*model, nn.ReLU()))
    assert model_digest(model) != model_digest(network().double())


def test_data_of_every_kind():
    batch = images()
    assert data_digest(batch) == data_digest(batch.clone())
    assert data_digest([batch, 1]) == data_digest((batch.clone(), 1))
    assert data_digest({"a": batch, "b": 1}) == data_digest({"b": 1, "a": batch})
    assert len({data_digest(one) for one in (batch, [batch], {"a": batch}, batch[:-1], -batch)}) == 5
    assert data_digest(torch.utils.data.DataLoader(batch)) is None


def test_a_solver_that_cannot_be_told_apart_is_refused():
    with pytest.raises(CompressionError, match="make it a frozen dataclass"):
        solver_fields(object())
