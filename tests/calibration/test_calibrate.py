"""td.calibrate: what it fits, what it leaves alone, and in which states of a model it works."""

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.calibration.batch_norm import estimating
from tdcompress.calibration.fits import LayerFit
from tdcompress.calibration.regression import Regression
from tdcompress.methods import METHODS
from tests.drawing import each_once


def network(norm=True, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1, bias=not norm),
        nn.BatchNorm2d(16) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    with torch.no_grad():
        for x in images(64, seed=3):
            model.train()(x)
    return model.eval()


def of_matrices(model):
    """The same with linear layers of 27, 24, 24 and 20 features."""
    norm = nn.BatchNorm1d(24) if isinstance(model[4], nn.BatchNorm2d) else nn.Identity()
    first, second = nn.Linear(27, 24), nn.Linear(24, 24)
    return nn.Sequential(first, nn.BatchNorm1d(24), nn.ReLU(), second, norm, nn.ReLU(), nn.Linear(24, 20)).eval()


def images(count=64, seed=1):
    return list(torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed)).split(16))


def small_of(model, method="tucker"):
    return td.decompose(model, ["3", "6"], method, 0.75)


def state(model):
    return copy.deepcopy(model.state_dict())


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def distance(model, small, data):
    with torch.no_grad(), td_eval(model), td_eval(small):
        return sum(float((model(x) - small(x)).square().sum()) for x in data)


class td_eval:  # noqa: N801
    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.mode = self.model.training
        self.model.eval()

    def __exit__(self, *_):
        self.model.train(self.mode)


@pytest.mark.parametrize(("method", "norm"), each_once(product(sorted(METHODS), [True, False])))
def test_each_fit_comes_nearer_to_the_original_on_new_data(method, norm):
    model, old, new = network(norm), images(128), images(64, seed=9)
    if not METHODS[method].takes(td.ConvSpec.of(model[3])):
        model, (old, new) = of_matrices(model), ([x[:, :, 0].flatten(1) for x in data] for data in (old, new))
    small = small_of(model, method)
    before = distance(model, small, new)
    last = distance(model, td.calibrate(small, old, model, fit="last"), new)
    everything = distance(model, td.calibrate(small, old, model, fit="all"), new)
    assert last < before
    assert everything < before


def test_the_original_and_the_compressed_model_are_left_alone_and_modes_restored():
    model, data = network().train(), images()
    small = small_of(model).train()
    small[4].eval()
    before, unfitted = state(model), state(small)
    for fit in ("bias", "last", "all"):
        found = td.calibrate(small, data, model, fit=fit)
        assert not same(state(found), unfitted)
        assert [m.training for m in found.modules()] == [m.training for m in small.modules()]
    assert same(state(model), before)
    assert same(state(small), unfitted)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in [*model.modules()])


def test_in_place_is_the_same_model_with_the_same_values():
    model, data = network(), images()
    small: Any = small_of(model)
    weight = small[3][0].weight
    found = td.calibrate(small, data, model)
    same_model: Any = td.calibrate(small, data, model, inplace=True)
    assert same_model is small
    assert same_model[3][0].weight is weight
    assert same(state(small), state(found))


def test_labels_are_never_looked_at():
    model, data = network(), images()

    class Label:
        def __getattribute__(self, name):
            raise AssertionError(f"a label was looked at: {name}")

    pairs = [(x, Label()) for x in data]
    small = small_of(model)
    assert same(state(td.calibrate(small, pairs, model)), state(td.calibrate(small, data, model)))


def test_statistics_are_those_of_all_that_a_norm_sees_and_of_no_norm_before_the_first_factorized_layer():
    model, data = network(), images()
    small = small_of(model)
    found: Any = td.calibrate(small, data)
    seen = torch.cat([found[:4](x) for x in data]).detach()
    torch.testing.assert_close(found[4].running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[4].running_var, seen.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert torch.equal(found[1].running_mean, model[1].running_mean)
    assert torch.equal(found[3][0].weight, small[3][0].weight)


def test_statistics_pool_over_batches_of_any_size():
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(norm).eval()
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
    with estimating(model, ["0"], {}):
        for part in x.split([1, 2, 7]):
            model(part)
    torch.testing.assert_close(norm.running_mean, x.mean(0))
    torch.testing.assert_close(norm.running_var, x.var(0))
    assert not norm._forward_pre_hooks


def test_with_the_original_statistics_move_by_what_differs_on_the_same_inputs():
    model, data = network(), images(32)
    found: Any = td.calibrate(small_of(model), data, model)
    with torch.no_grad():
        before, after = (torch.cat([one[:4](x) for x in data]) for one in (model, found))
    for name, moved in (
        ("running_mean", model[4].running_mean + after.mean((0, 2, 3)) - before.mean((0, 2, 3))),
        ("running_var", model[4].running_var * after.var((0, 2, 3)) / before.var((0, 2, 3))),
    ):
        torch.testing.assert_close(getattr(found[4], name), moved, rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning, match="larger"):
        exact: Any = td.calibrate(td.decompose(model, "3", "tucker", rank=(16, 12)), data, model)
    torch.testing.assert_close(exact[4].running_var, model[4].running_var, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exact[4].running_mean, model[4].running_mean, rtol=1e-4, atol=1e-5)


def test_a_channel_that_is_constant_in_the_original_takes_what_is_seen():
    model, data = network(), images(32)
    with torch.no_grad():
        model[3].weight[2] = 0
    small = small_of(model)
    with torch.no_grad():
        small[3][-1].weight[2] += 0.1
    found: Any = td.calibrate(small, data, model, fit="bias")
    with torch.no_grad():
        seen = torch.cat([found[:4](x) for x in data])
    torch.testing.assert_close(found[4].running_var[2], seen.var((0, 2, 3))[2], rtol=1e-4, atol=1e-6)


def test_a_frozen_norm_and_one_without_statistics_stay_as_they_are():
    model, data = network(), images()
    small = small_of(model).train()
    small[4].eval()
    mean = "4.running_mean"
    assert torch.equal(td.calibrate(small, data).get_buffer(mean), small.get_buffer(mean))
    assert not torch.equal(td.calibrate(small.eval(), data).get_buffer(mean), small.get_buffer(mean))
    assert torch.equal(td.calibrate(small, data, batch_norm=False).get_buffer(mean), small.get_buffer(mean))
    small[4] = nn.BatchNorm2d(16, track_running_stats=False).eval()
    found: Any = td.calibrate(small, data)
    assert found[4].running_mean is None
    assert same(state(found), state(small))


def test_the_bias_takes_over_the_mean_of_what_was_lost():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    data = images()
    found = td.calibrate(td.decompose(model, ["0", "2"], "tucker", 0.6), data, model, fit="bias")
    with torch.no_grad():
        apart = torch.cat([model(x) - found(x) for x in data]).mean((0, 2, 3))
    assert apart.abs().max() < 1e-5


def test_least_squares_of_the_last_stage_is_the_best_there_is():
    """Against torch.linalg.lstsq on the features themselves, up to the ridge."""
    model, data = network(norm=False).double(), [x.double() for x in images()]
    small: Any = td.decompose(model, "6", "tucker", 0.75)
    found: Any = td.calibrate(small, data, model, fit="last")
    with torch.no_grad():
        entered = torch.cat([small[6][:-1](small[:6](x)) for x in data]).movedim(1, -1).flatten(0, 2)
        goal = torch.cat([model[:7](x) for x in data]).movedim(1, -1).flatten(0, 2)
        rows = torch.cat([entered, torch.ones(len(entered), 1)], 1)
        best = (rows @ torch.linalg.lstsq(rows, goal).solution - goal).square().sum()
        ours = (found[6][-1].weight.flatten(1) @ entered.mT + found[6].bias[:, None] - goal.mT).square().sum()
        before = (small[6][-1].weight.flatten(1) @ entered.mT + small[6].bias[:, None] - goal.mT).square().sum()
    assert best <= ours * (1 + 1e-9)
    assert ours < best + 0.02 * (before - best)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv1d(6, 8, 5, padding="same", dilation=2, padding_mode="reflect"), (8, 6, 20)),
        (nn.Conv3d(4, 8, 3, stride=(1, 2, 1), groups=2), (6, 4, 6, 6, 6)),
        (nn.ConvTranspose2d(6, 8, 3, stride=2), (6, 6, 5, 5)),
        (nn.Linear(12, 16), (8, 5, 12)),
        (nn.Conv2d(6, 8, 3, bias=False), (8, 6, 6, 6)),
    ],
)
@pytest.mark.parametrize("fit", ["bias", "last", "all"])
def test_every_kind_of_layer(layer, x, fit):
    model = nn.Sequential(layer).eval()
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(x, generator=generator) + 0.5 for _ in range(4)]
    small = td.decompose(model, "0", "svd", 0.5)
    found = td.calibrate(small, data, model, fit=fit)
    assert distance(model, found, data) <= distance(model, small, data) * (1 + 1e-6)


@pytest.mark.parametrize("scale", [0, 1e-20, 1, 1e4])
@pytest.mark.parametrize("fit", ["last", "all"])
@pytest.mark.parametrize(
    ("layer", "shape", "method"),
    [
        (nn.Linear(16, 20), (16,), "svd"),
        (nn.Conv2d(16, 24, 1), (16, 1, 1), "cp"),
        (nn.Conv2d(16, 24, 3), (16, 1, 1), "tucker"),
    ],
)
def test_inputs_that_never_change_leave_what_is_said_of_them_right(layer, shape, method, fit, scale):
    """Their covariance is rounding alone, or zero: what is behind units that died sees nothing else."""
    value = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    data = [value.expand(4, *shape[:1], *(6 for _ in shape[1:])).clone() for _ in range(2)]
    model = nn.Sequential(layer)
    found = td.calibrate(td.decompose(model, "0", method, 0.5), data, model, fit=fit)
    with torch.no_grad():
        torch.testing.assert_close(found(data[0]), model(data[0]), rtol=1e-4, atol=1e-4 * scale + 1e-6)


class Mixture(nn.Module):
    """Two experts, and a first layer that decides by its first feature which of them is asked."""

    def __init__(self):
        super().__init__()
        self.first, self.experts = nn.Linear(16, 16), nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x):
        x = self.first(x)
        out = torch.zeros_like(x)
        for expert, asked in zip(self.experts, (x[:, 0] > 0, x[:, 0] <= 0), strict=True):
            out[asked] = expert(x[asked])
        return out


def test_experts_may_have_nothing_to_do_in_a_batch():
    torch.manual_seed(0)
    model = Mixture()
    with torch.no_grad():
        model.first.weight.copy_(torch.eye(16))
        model.first.bias.zero_()
    some, others = torch.randn(30, 16).abs(), -torch.randn(40, 16).abs()
    small = td.decompose(model, "experts.*", "svd", 0.5)
    found = td.calibrate(small, [some, others], model)
    assert distance(model, found, [some, others]) < distance(model, small, [some, others])
    assert td.compress(model, 0.3, layers="experts.*", data=[some, others]) is not None
    # The same expert, wherever what it is asked comes; and one that is never asked stays dense.
    assert td.plan(model, 0.3, data=[some, others]).left == ()
    plan = td.plan(model, 0.2, data=[some, some])
    assert plan.left == (("experts.1", "the forward never reaches it."),)
    with pytest.raises(td.CompressionError, match=r"never reached 'experts\.1'"):
        td.plan(model, 0.2, layers=["first", "experts.1"], data=[some, some])


@pytest.mark.parametrize("fit", ["bias", "last", "all"])
def test_experts_that_are_asked_other_things_stay_as_they_are(fit):
    torch.manual_seed(0)
    model, data = Mixture(), [torch.randn(40, 16) for _ in range(3)]
    small = td.decompose(model, "*", "svd", 0.5)
    with pytest.warns(UserWarning, match="'experts.0', 'experts.1': the compressed model calls them with other"):
        found = td.calibrate(small, data, model, fit=fit)
    assert same(state(small.get_submodule("experts")), state(found.get_submodule("experts")))
    assert not same(state(small.get_submodule("first")), state(found.get_submodule("first")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half(dtype):
    model, data = network().to(dtype), [x.to(dtype) for x in images()]
    found: Any = td.calibrate(small_of(model), data, model)
    assert {value.dtype for value in found.parameters()} == {dtype}
    assert found[4].running_var.dtype == dtype
    assert distance(model.float(), found.float(), images(64, seed=9)) < distance(
        model.float(), small_of(model.float()), images(64, seed=9)
    )


def test_it_is_deterministic_and_moves_no_global_generator():
    model, data = network(), images()
    before = torch.get_rng_state()
    one = td.calibrate(small_of(model), data, model)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(state(one), state(td.calibrate(small_of(model), data, model)))


def test_a_layer_that_runs_twice():
    torch.manual_seed(0)
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    data = [torch.randn(8, 8, 6, 6)]
    small = td.decompose(model, "0", "tucker", 0.6)
    assert distance(model, td.calibrate(small, data, model), data) < distance(model, small, data)


def test_what_cannot_be_is_refused():
    model, data = network(), images()
    small = small_of(model)
    with pytest.raises(td.CompressionError, match="unknown fit"):
        td.calibrate(small, data, model, fit="everything")  # type: ignore[arg-type]
    with pytest.raises(td.CompressionError, match="data is empty"):
        td.calibrate(small, [], model)
    with pytest.raises(td.CompressionError, match="spent after one pass"):
        td.calibrate(small, iter(data), model)
    with pytest.raises(td.CompressionError, match="no factorized layer"):
        td.calibrate(model, data)
    with pytest.raises(td.CompressionError, match="of one kind"):
        td.calibrate(small, data, nn.Sequential(nn.Conv2d(3, 12, 3)))
    unfitted = state(small)
    with pytest.raises(td.CompressionError):
        td.calibrate(small, [torch.full((2, 3, 9, 9), float("nan"))], model, inplace=True)
    assert same(state(small), unfitted)


def test_an_embedding_is_not_fitted_and_nothing_is_kept_for_it(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 12), nn.Linear(12, 12)).eval()
    small: Any = td.decompose(model, "*", "svd", 0.5)
    told, goal = [], LayerFit.goal

    def counted(fit, call):
        told.append(fit.name)
        return goal(fit, call)

    monkeypatch.setattr(LayerFit, "goal", counted)
    data = [torch.randint(0, 40, (4, 6)) for _ in range(5)]
    found: Any = td.calibrate(small, data, model)
    assert told == ["1"] * 5
    assert torch.equal(found[0][0].weight, small[0][0].weight)
    assert not torch.equal(found[1][0].weight, small[1][0].weight)


class Passes:
    """Batches that are no list, in another order in every pass if they shall be shuffled."""

    def __init__(self, batches, shuffled):
        self.batches, self.shuffled, self.seed = batches, shuffled, 0

    def __iter__(self):
        self.seed += 1
        order = torch.randperm(len(self.batches), generator=torch.Generator().manual_seed(self.seed))
        return iter([self.batches[i] for i in order] if self.shuffled else self.batches)


def forwards_of(model):
    told = []
    model.register_forward_pre_hook(lambda module, args: told.append(len(args[0])))
    return told


def test_of_a_list_the_original_runs_once(monkeypatch):
    model, data = network(), images(64)
    small = small_of(model)
    told = forwards_of(model)
    once = td.calibrate(small, data, model)
    assert told == [2, 2, *(len(x) for x in data)]  # and twice to choose the memory format
    told.clear()
    along = td.calibrate(small, Passes(data, shuffled=False), model)
    assert len(told) > 2 * len(data)
    assert same(state(once), state(along))
    told.clear()
    monkeypatch.setattr("tdcompress.calibration.original._BYTES", 100)
    too_much = td.calibrate(small, data, model)
    assert len(told) > 2 * len(data)
    assert distance(model, too_much, data) == pytest.approx(distance(model, once, data), rel=0.1)


def test_batches_that_come_in_another_order_keep_their_goals():
    model, data = network(), images(64)
    small = small_of(model)
    in_order, shuffled = (td.calibrate(small, Passes(data, shuffled), model) for shuffled in (False, True))
    assert distance(model, shuffled, data) < 1.05 * distance(model, in_order, data)
    assert distance(model, shuffled, data) < distance(model, small, data)


def test_the_equations_of_grouped_layers_are_counted_for_every_group():
    seen = Regression(td.ConvSpec.of(nn.Conv2d(32, 32, 3, groups=8)), centred=True)
    assert seen.nbytes == 8 * 8 * 36 * (36 + 4)
