"""Which layers a study decomposes by which methods."""

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.study import Study


def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6)
        )


def evaluate(model):
    return {"norm": float(model(torch.ones(1, 3, 5, 5)).norm())}


def pairs(layers, methods):
    found = Study(model(), layers, methods, [0.5], 1, evaluate)
    assert found.layer_names() == list(dict.fromkeys(trial.layer for trial in found.trials()))
    return [(trial.layer, trial.method) for trial in found.trials()]


ALL = {
    "*": "*",
    "every predicate": lambda name, module: True,
    "globs": ["[0-2]", "[3-9]"],
}


@pytest.mark.parametrize("layers", ALL.values(), ids=ALL)
def test_a_method_of_linear_layers_gets_them(layers):
    assert pairs(layers, ["svd"]) == [(name, "svd") for name in "0246"]


@pytest.mark.parametrize("layers", ["*", lambda name, module: True])
def test_each_method_gets_what_it_can_take_in_the_model_s_order(layers):
    both = [("0", "cp"), ("0", "svd"), ("2", "cp"), ("2", "svd")]
    assert pairs(layers, ["cp", "svd"]) == [*both, ("4", "svd"), ("6", "svd")]
    assert pairs(layers, ["cp"]) == [("0", "cp"), ("2", "cp")]


def test_a_predicate_alone_decides_among_them():
    assert pairs(lambda name, module: name in "24", ["cp", "svd"]) == [("2", "cp"), ("2", "svd"), ("4", "svd")]


@pytest.mark.parametrize("layers", ["4", ["2", "4"], ["*", "4"]])
@pytest.mark.parametrize("methods", [["cp"], ["svd", "cp"]])
def test_a_named_layer_that_a_method_cannot_take_is_refused_with_both_names(layers, methods):
    with pytest.raises(
        td.CompressionError, match=r"layer '4': method 'cp' cannot take a Linear; leave one of them out"
    ):
        pairs(layers, methods)
    assert ("4", "svd") in pairs(layers, ["svd"])


@pytest.mark.parametrize("layers", ["[46]", lambda name, module: isinstance(module, nn.Linear)])
def test_a_method_that_nothing_is_picked_for_is_refused(layers):
    with pytest.raises(td.CompressionError, match="method 'tucker' takes none of the layers"):
        pairs(layers, ["svd", "tucker"])


def test_such_a_study_runs_and_a_smaller_one_finds_its_trials(tmp_path):
    store = tmp_path / "study.sqlite"
    table = Study(model(), "*", ["cp", "svd"], [0.5], 1, evaluate).run(store, progress=False)
    assert len(table) == 6
    calls = []
    again = Study(model(), ["0", "2"], ["svd"], [0.5], 1, lambda model: calls.append(1) or evaluate(model))
    assert len(again.run(store, progress=False)) == 2
    assert not calls
