"""report(): what is counted, what is timed, and that nothing is left behind."""

import time
from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.report import Cost, LayerReport, Report


def a_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Dropout(), nn.Conv2d(16, 16, 3, padding=1, bias=False))


X = torch.randn(2, 3, 8, 8)
DENSE = 16 * 16 * 9


def test_parameters_ratios_and_the_solvers_word():
    model = a_model()
    small: Any = td.decompose(model, "2", "tucker", 0.7)
    found = td.report(small)
    (entry,) = found.layers
    kept = sum(parameter.numel() for parameter in small[2].parameters())
    assert (entry.layer, entry.method, entry.rank) == ("2", "tucker", small[2].rank)
    assert entry.cost == Cost((DENSE, kept))
    assert (entry.ratio_asked, entry.ratio) == (0.7, 1 - kept / DENSE)
    assert entry.relative_error == pytest.approx(
        td.approximation_errors(model, small)["2"]["relative_weights"], rel=1e-4
    )
    assert entry.verdict == f"converged, {small[2].solution.sweeps} sweeps"
    assert found.total.parameters == tuple(sum(p.numel() for p in one.parameters()) for one in (model, small))
    assert found.slower == ()
    with pytest.raises(AttributeError):
        found.total = None  # type: ignore[assignment, misc]


def test_multiply_adds_are_those_of_the_formula():
    small = td.decompose(a_model(), "2", "tucker", rank=(4, 5))
    (entry,) = (found := td.report(small, X, rounds=1)).layers
    positions = 2 * 8 * 8
    assert entry.cost.multiply_adds == (positions * DENSE, positions * (16 * 5 + 5 * 4 * 9 + 4 * 16))
    first = positions * 3 * 16 * 9
    assert found.total.multiply_adds == tuple(first + count for count in entry.cost.multiply_adds)


def test_a_layer_may_be_given_a_view_of_a_parameter():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings, self.project = nn.Parameter(torch.randn(8, 16)), nn.Linear(16, 16)

        def forward(self, x):
            return self.project(x) + self.project(self.embeddings[2:6])

    small = td.decompose(Positions(), "project", "svd", rank=3)
    found = td.report(small, torch.randn(4, 16), rounds=1).total.multiply_adds
    assert found == (2 * 4 * 16 * 16, 2 * 4 * 2 * 16 * 3)


def test_every_call_of_a_shared_module_counts():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    small = td.decompose(nn.Sequential(conv, nn.ReLU(), conv), "0", "cp", 0.5)
    once = td.report(td.decompose(conv, "", "cp", 0.5), torch.randn(1, 8, 8, 8), rounds=1)
    (entry,) = td.report(small, torch.randn(1, 8, 8, 8), rounds=1).layers
    assert once.total.multiply_adds is not None
    assert entry.cost.multiply_adds == tuple(2 * count for count in once.total.multiply_adds)


def test_tied_factors_count_once_in_the_total():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False))
    model[1].weight = model[0].weight
    small = td.decompose(model, "*", "cp", 0.5)
    assert td.report(small).total.parameters == (8 * 8 * 9, sum(p.numel() for p in small.parameters()))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.idle = nn.Conv2d(8, 8, 3)

    def forward(self, a, *, b=None):
        b = a if b is None else b
        return {"sum": self.left(a) + self.right(input=b)}


@pytest.mark.parametrize("inputs", [{"a": X, "b": X}, (X,), [X], X])
def test_inputs_by_position_and_by_name(inputs):
    found = td.report(td.decompose(Two(), "*", "cp", 0.4), inputs, rounds=1)
    counts = {entry.layer: entry.cost.multiply_adds for entry in found.layers}
    assert counts["left"] == counts["right"]
    assert counts["left"] is not None
    assert counts["left"][0] > counts["left"][1] > 0
    assert counts["idle"] == (0, 0)
    assert found.layers[2].cost.milliseconds is None
    assert str(found).splitlines()[4].endswith("0 → 0")


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_as_it_was(training):
    small: Any = td.decompose(a_model(), "2", "tucker", 0.5).train(training)
    small[1].eval()
    small[0].register_forward_hook(lambda *args: None)
    modes = [module.training for module in small.modules()]
    hooks = [list(module._forward_hooks) + list(module._forward_pre_hooks) for module in small.modules()]
    state = {name: value.clone() for name, value in small.state_dict().items()}
    generator = torch.get_rng_state()
    td.report(small, X, rounds=1)
    assert [module.training for module in small.modules()] == modes
    assert [list(module._forward_hooks) + list(module._forward_pre_hooks) for module in small.modules()] == hooks
    assert all(torch.equal(value, state[name]) for name, value in small.state_dict().items())
    assert all(parameter.grad is None for parameter in small.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_forward_that_fails_leaves_no_hook():
    small = td.decompose(a_model(), "2", "tucker", 0.5).train()
    with pytest.raises(RuntimeError):
        td.report(small, torch.randn(1, 5, 8, 8))
    assert small.training
    assert not any(module._forward_pre_hooks for module in small.modules())


def test_times_are_medians_of_alternating_turns(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) ** 2)  # every call takes longer than the last one
    found = td.report(td.decompose(a_model(), "2", "tucker", 0.5), X, rounds=4)
    assert found.total.milliseconds is not None
    assert found.total.milliseconds[0] == found.total.milliseconds[1]  # neither is favoured by its turn


def test_what_became_slower_is_said_in_words():
    layer = LayerReport("conv1", "cp", 3, Cost((10, 5), (10, 5), (1.0, 2.5)), 0.5, 0.5, 0.1, "closed form")
    found = Report((layer,), Cost((20, 15), (20, 15), (3.0, 2.9)))
    assert found.slower == ("layer 'conv1' became slower: 1 ms dense, 2.5 ms now; restore() it, or remove more.",)
    for text in (str(found), found.to_markdown()):
        assert text.splitlines()[-1] == found.slower[0]
    found = Report((layer,), Cost((20, 15), (20, 15), (3.0, 3.5)))
    assert found.slower[1] == "the model became slower: 3 ms dense, 3.5 ms now; restore() it, or remove more."


def test_as_text_markdown_and_pandas():
    small: Any = td.decompose(a_model(), "*", "cp", rank=5)
    found = td.report(small, X, rounds=1)
    lines = str(found).splitlines()
    assert lines[0].split() == [
        "layer", "method", "rank", "ratio", "asked", "reached", "error", "solver", "parameters", "multiply-adds",
        "milliseconds",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[2:5]] == ["0", "2", "the"]
    assert "|  | 0." in found.to_markdown()  # nothing was asked: a rank was given
    frame = found.to_pandas()
    assert frame["layer"].tolist() == ["0", "2"]
    assert frame["parameters_before"].tolist() == [448, DENSE]
    assert frame["ratio"].tolist() == [small[0].ratio, small[2].ratio]
    assert frame["ratio_asked"].isna().all()
    assert td.report(small).to_pandas()["milliseconds_after"].isna().all()


def test_a_model_without_factorized_layers_and_a_layer_with_fresh_weights():
    found = td.report(a_model(), X, rounds=1)
    assert found.layers == ()
    assert found.slower == ()
    assert found.total.multiply_adds is not None
    assert found.total.multiply_adds[0] == found.total.multiply_adds[1]
    assert "no layer is factorized" in str(found)
    assert found.to_pandas().empty
    fresh = td.CPConv(td.ConvSpec.of(nn.Conv2d(4, 4, 3)), 2)
    assert td.report(fresh).layers[0].relative_error is None


@pytest.mark.parametrize("rounds", [0, -1, 2.5, True])
def test_rounds_are_checked(rounds):
    with pytest.raises(td.CompressionError, match="rounds must be a whole number from 1"):
        td.report(a_model(), X, rounds=rounds)


def test_errors_stand_beside_the_costs():
    model = a_model()
    small = td.decompose(model, "2", "tucker", 0.7)
    errors = td.approximation_errors(model, small, ["absolute_weights"])
    found = td.report(small, errors=errors)
    assert found.layers[0].errors == errors["2"]
    assert found.to_pandas()["absolute_weights"].tolist() == [errors["2"]["absolute_weights"]]
    header, row = (line.split(" | ") for line in found.to_markdown().splitlines()[:3:2])
    assert row[header.index("absolute weights")] == f"{errors['2']['absolute_weights']:.3g}"
    assert "absolute" not in td.report(small).to_markdown()
    with pytest.raises(td.CompressionError, match="errors are of elsewhere; the model's factorized layers are 2"):
        td.report(small, errors={"elsewhere": {}})


def test_what_no_method_reaches_is_said_where_it_is_much():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(100, 16), nn.Linear(16, 12)
            self.lstm, self.places = nn.LSTM(16, 16), nn.Parameter(torch.zeros(1, 10, 16))

        def forward(self, x):
            return self.head(self.lstm(self.embed(x) + self.places)[0])

    found = td.report(td.decompose(Tagger(), "head", "svd", rank=3))
    assert found.others == (("", "Tagger", 160), ("lstm", "LSTM", 2 * 4 * 16 * 16))
    assert [line for line in str(found).splitlines() if line.startswith("out of reach")] == [
        "out of reach: 'lstm': 2.05 K of the model's 4.03 K parameters; LSTM is no layer that is known."
    ]
    tied = Tagger()
    tied.extra = nn.Module()
    tied.extra.weight = tied.head.weight  # is the head's
    assert "extra" not in {name for name, *_ in td.report(tied).others}
    assert td.report(a_model()).others == ()
