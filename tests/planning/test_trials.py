"""Trials of single layers: what they measure, against whole forwards of a changed copy, and what they leave alone."""

import copy
import math
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

import tdcompress as td
from tdcompress.batches import forward, output_of
from tdcompress.planning.curves import curve_of
from tdcompress.planning.trials import Trials, few_of, loss_of


class Branching(nn.Module):
    """A layer called twice, in-place successors, a skip connection that is added in place, a keyword call."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.side = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.relu, self.same, self.head = nn.ReLU(inplace=True), nn.Identity(), nn.Linear(8, 10)

    def forward(self, x):
        x = self.relu(self.first(x))
        skip = self.same(x)
        y = self.relu(self.twice(x))
        y = self.twice(input=y)
        y += self.side(skip)
        y += 1
        return self.head(y.mean((2, 3)))


def bert():
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=60)
    return BertModel(config), [{"input_ids": torch.randint(0, 60, (3, 7))} for _ in range(2)]


def gpt2():
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config), [torch.randint(0, 50, (3, 7))]


def branching():
    return Branching(), [torch.randn(4, 3, 6, 6) for _ in range(3)]


class Wavering(nn.Module):
    """A forward that does not do the same every time."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.calls = nn.Linear(6, 6), nn.Linear(6, 6), 0

    def forward(self, x):
        self.calls += 1
        return self.second(self.first(x) + self.calls)


def whole_forward(model, name, layer, inputs):
    changed = copy.deepcopy(model)
    parent, _, leaf = name.rpartition(".")
    setattr(changed.get_submodule(parent), leaf, layer)
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in inputs:
            before, after = (output_of(forward(one, batch)).double() for one in (model, changed))
            if before.ndim == 2:
                first, second = before.log_softmax(1), after.log_softmax(1)
                change = (first.exp() * (first - second)).sum(1)
            else:
                change = (before - after).flatten(1).square().sum(1) / before.flatten(1).square().sum(1)
            total, count = total + float(change.sum()), count + len(change)
    return total / count


def weaker(layer):
    changed = copy.deepcopy(layer)
    with torch.no_grad():
        changed.weight.mul_(0.9)
    return changed


@pytest.mark.parametrize("make", [branching, bert, gpt2])
def test_a_trial_is_what_a_whole_forward_gives(make):
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    names = [name for name, module in model.named_modules() if type(module).__name__ in ("Conv2d", "Linear", "Conv1D")]
    state = copy.deepcopy(model.state_dict())
    kept = [batch.clone() if isinstance(batch, torch.Tensor) else batch for batch in inputs]
    trials = Trials(model, names, inputs)
    assert trials.order
    for name in trials.order:
        layer = weaker(model.get_submodule(name))
        assert trials.change(name, layer) == pytest.approx(whole_forward(model, name, layer, inputs), rel=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(kept, inputs, strict=True) if isinstance(a, torch.Tensor))


class Counting(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_nothing_before_the_layer_is_computed_again_and_parameters_are_not_copied():
    model: Any = nn.Sequential(*[Counting(5, 5) for _ in range(4)]).eval()
    trials = Trials(model, ["1", "3"], [torch.randn(2, 5)])
    modules: Any = trials._replay.modules
    assert modules["0"].calls == 1
    for _ in range(5):
        trials.change("1", weaker(model[1]))
    assert (modules["0"].calls, model[0].calls) == (2, 0)
    before = modules["1"].calls
    for _ in range(5):
        trials.change("3", weaker(model[3]))
    assert (modules["0"].calls, modules["1"].calls) == (2, before + 1)
    assert modules["0"].weight is model[0].weight


def test_a_forward_that_does_not_repeat_itself_is_run_as_a_whole():
    torch.manual_seed(0)
    trials = Trials(Wavering().eval(), ["first", "second"], [torch.randn(4, 6)])
    trials.change("second", nn.Linear(6, 6))
    assert not trials._replay._trusted
    assert trials.change("second", nn.Linear(6, 6)) > 0


def test_norms_behind_the_layer_are_calibrated_meanwhile_and_put_back():
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    inputs = [torch.randn(8, 3, 6, 6) for _ in range(2)]
    trials = Trials(model, ["0"], inputs)
    # A scaled layer is made up for by its norm.
    assert trials.change("0", weaker(model[0])) < 1e-4
    assert trials.change("0", copy.deepcopy(model[0])) < 1e-8
    assert torch.equal(trials._replay.modules["1"].running_var, model[1].running_var)


def test_few_inputs_are_taken_for_deep_networks_and_tokens_count():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    data = [torch.randn(50, 3, 4) for _ in range(10)]
    assert sum(map(len, few_of(model, data, layers=5))) == 256
    assert sum(map(len, few_of(model, data, layers=50))) == 32
    tokens = [{"x": torch.randn(16, 20, 12)}]

    class Tokens(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    assert len(few_of(Tokens(12, 5), tokens, layers=60)[0]["x"]) == 4
    assert few_of(model, [], layers=3) == []


def test_what_was_tried_is_gone_before_the_next_layer_is_solved(monkeypatch, one_thread):
    tried: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []

    def watched(wanted):
        alive.append(sum(layer() is not None for layer in tried))
        options, layers = curve_of(wanted)
        tried.extend(weakref.ref(layer) for _, layer in layers)
        return options, layers

    monkeypatch.setattr("tdcompress.planning.estimates.curve_of", watched)
    model, inputs = branching()
    td.plan(model, 0.5, layers=["first", "twice", "side"], methods=("svd",), data=inputs)
    assert len(tried) > 2
    assert alive == [0, 0, 0]


def test_no_data_is_refused():
    with pytest.raises(td.CompressionError, match="the data is empty"):
        Trials(nn.Linear(3, 3), [""], [])


def test_an_output_whose_size_depends_on_the_weights_is_refused():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Linear(16, 16)

        def forward(self, x):
            scores = self.features(x)
            return scores[scores > 0][None]

    with pytest.raises(td.CompressionError, match=r"layer 'features': the output has the shape .* trials=False"):
        td.compress(Detector(), 0.5, data=torch.randn(8, 16))
    assert td.compress(Detector(), 0.5, data=torch.randn(8, 16), trials=False) is not None


def test_what_is_foreseen_from_trials_that_nearly_agree_is_a_number():
    loss = loss_of([(0.5, 1e-9), (0.5000001, 1.0)])
    assert loss(0.5) == 1e-9
    assert 1.0 < loss(0.6) < loss(0.9) < math.inf
