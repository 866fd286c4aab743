"""td.plan: budgets kept, models refused, JSON, edits, and what counts for a layer."""

import copy
import dataclasses
import json
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tdcompress as td
import tdcompress.compression as compression
import tdcompress.layers.cp as cp_layers
import tdcompress.planning.estimates as estimates
from tdcompress.decompositions import cp
from tdcompress.methods import planned_by_default
from tdcompress.metrics import METRICS
from tdcompress.report.measuring import count_multiply_adds
from tests.drawing import each_once, more

METHODS = planned_by_default()
CLOSED = ("tucker", "tt", "svd")  # enough for what does not depend on the method, and planned without CP's many sweeps


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, stride=2),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    return model.eval()


def images(count=32, seed=1):
    return list(torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).split(16))


def kept(plan, model):
    """The weights of the planned layers after `apply`, counted on the modules."""
    small = plan.apply(model)
    layers = [small.get_submodule(entry.layer) for entry in plan.layers]
    return sum(
        sum(stage.weight.numel() for stage in layer) if isinstance(layer, td.FactorizedConv) else layer.weight.numel()
        for layer in layers
    )


def dense_weights(plan, model):
    return sum(model.get_submodule(entry.layer).weight.numel() for entry in plan.layers)


EVERY_METHOD = [*((method,) for method in METHODS), tuple(METHODS)]


@pytest.mark.parametrize(("methods", "ratio"), each_once(product(EVERY_METHOD, [0.1, 0.3, 0.5, 0.75, 0.9])))
def test_the_budget_is_never_exceeded_and_nearly_used(methods, ratio):
    model = network()
    plan = td.plan(model, ratio, methods=methods, layers=["3", "6"] if methods != ("svd",) else None)
    size = dense_weights(plan, model)
    used = kept(plan, model)
    assert used == plan.cost[1] <= plan.budget
    assert plan.budget == pytest.approx((1 - ratio) * size)
    assert used > 0.75 * plan.budget


@pytest.mark.parametrize(
    ("methods", "objective"),
    [(("svd",), "parameters"), (("cp", "svd"), "macs"), *more((("svd",), "macs"), (("cp", "svd"), "parameters"))],
)
def test_one_layer_that_has_most_of_the_weights_leaves_little_of_the_budget(methods, objective):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 64, 1000))
    for ratio in (0.3, 0.5, 0.77):
        plan = td.plan(model, ratio, methods=methods, objective=objective, example_inputs=torch.zeros(1, 3, 8, 8))
        spare = plan.budget - plan.cost[1]
        assert 0 <= spare < 512 + 1000  # less than one rank more
        assert plan["2"].choice.rank in [option.rank for option in plan["2"].options]
        small: Any = plan.apply(model)
        assert small[2].rank == plan["2"].choice.rank[0]


def test_multiply_adds_keep_to_their_budget():
    model, example = network(), torch.zeros(2, 3, 8, 8)
    plan = td.plan(model, 0.6, objective="macs", example_inputs=example, layers=["0", "3", "6"], methods=CLOSED)
    small = plan.apply(model)
    found = td.report(small, example, rounds=1).total.multiply_adds
    assert found is not None
    dense, now = found
    fixed = dense - plan.cost[0]
    assert now - fixed == plan.cost[1] <= plan.budget


def test_with_latency_no_chosen_layer_was_slower_than_dense_when_measured(monkeypatch):
    def by_work(before, after, rounds):  # what a clock would say of a machine without any overhead
        return float(count_multiply_adds(before)), float(count_multiply_adds(after))

    monkeypatch.setattr("tdcompress.planning.costs.median_milliseconds", by_work)
    monkeypatch.setattr("tdcompress.planning.choice.median_milliseconds", by_work)
    plan = td.plan(
        network(), 0.05, objective="latency", example_inputs=torch.zeros(4, 3, 32, 32), methods=("tucker",), layers="3"
    )
    assert plan.cost[1] <= plan.budget
    assert all(entry.choice.cost <= entry.dense.cost for entry in plan.layers)
    monkeypatch.setattr("tdcompress.planning.choice.median_milliseconds", lambda *runs, rounds: (1.0, 2.0))
    with pytest.raises(td.CompressionError, match=r"the model would take 2 ms instead of 1"):
        td.plan(
            network(),
            0.05,
            objective="latency",
            example_inputs=torch.zeros(4, 3, 32, 32),
            methods=("tucker",),
            layers="3",
        )


@pytest.mark.parametrize(("width", "forms"), [(16, 1), (8, 2)])
def test_for_latency_layers_that_are_alike_are_timed_once(monkeypatch, width, forms):
    def by_parameters(conv, option, calls):
        timed.append(option)
        return 16.0 * 16.0, float(option.parameters)

    def timings(model):
        timed.clear()
        plan = td.plan(model, 0.5, objective="latency", example_inputs=torch.zeros(4, 16), methods=("svd",))
        return plan, len(timed)

    timed = []
    monkeypatch.setattr("tdcompress.planning.costs.milliseconds_of", by_parameters)
    monkeypatch.setattr("tdcompress.planning.choice.median_milliseconds", lambda *runs, rounds: (2.0, 1.0))
    monkeypatch.setattr("tdcompress.planning.choice.milliseconds_of", lambda *layer, rounds: (2.0, 1.0))
    _, alone = timings(nn.Sequential(nn.Linear(16, width)))
    plan, both = timings(nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 16)))
    assert both == forms * alone > 0
    assert plan.cost[1] <= plan.budget


def test_the_same_seed_gives_the_same_plan_and_leaves_the_model_and_the_generators_alone():
    model = network()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = td.plan(model, 0.7, layers=["3", "9"], data=images(), metric="relative_features")
    assert torch.equal(torch.get_rng_state(), state)
    assert first == td.plan(network(), 0.7, layers=["3", "9"], data=images(), metric="relative_features")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_impossible_budget_says_what_is_possible():
    with pytest.raises(td.CompressionError, match="smallest possible is") as caught:
        td.plan(network(), 0.999, methods=("tucker",), layers=["3", "6"])
    largest = float(str(caught.value).split()[-1].rstrip("."))
    assert td.plan(network(), largest - 1e-3, methods=("tucker",), layers=["3", "6"]).ratio >= largest - 1e-3


def test_json_both_ways():
    model = network()
    plan = td.plan(model, 0.6, layers=["3", "9"])
    again = td.Plan.from_json(plan.to_json())
    assert again == plan
    assert kept(again, model) == kept(plan, model)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"version": 1}', '{"version": 1, "layers": [{}], "objective": "macs"}'],
)
def test_damaged_json_is_refused(text):
    with pytest.raises(td.CompressionError, match="no plan"):
        td.Plan.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.update(budget="much"), "plan.budget must be float, found 'much'"),
        (lambda fields: fields.update(budget=10**400), "plan.budget must be float"),
        (lambda fields: fields.update(budget=float("nan")), "plan.budget must be float, found nan"),
        (lambda fields: fields.update(seed=True), "plan.seed must be int, found True"),
        (lambda fields: fields.update(objective="joy"), "unknown objective 'joy'"),
        (lambda fields: fields.update(surprise=1), "plan must have the fields"),
        (lambda fields: fields.update(left=[["9"]]), r"plan.left\[0\] must be a list"),
        (lambda fields: fields.update(version="1"), "it does not say which version"),
        (lambda fields: fields.update(method_options=[["svd", {"split": 3}]]), "method_options of svd.split must be"),
        (lambda fields: fields.update(method_options=[["cp", {"max_iter": -1}]]), "max_iter must be a whole number"),
        (lambda fields: fields["layers"][0].update(chosen=10**6), "layer '0': .* number 1000000 is chosen"),
        (lambda fields: fields["layers"][0].update(chosen=-1), "layer '0': .* number -1 is chosen"),
        (lambda fields: fields["layers"][0].pop("spec"), r"plan.layers\[0\] lacks spec"),
        (
            lambda fields: fields["layers"][0]["options"][-1].update(method="svd"),
            "layer '0': dense is not among the options",
        ),
        (lambda fields: fields["layers"][0]["options"][0].update(rank=[1.5]), r"options\[0\].rank\[0\] must be int"),
        (lambda fields: fields["layers"][0]["spec"].update(padding=7), "spec.padding must be"),
        (lambda fields: fields["layers"][0]["spec"].update(kind="Conv9d"), "unknown kind of layer 'Conv9d'"),
    ],
)
def test_a_wrong_value_in_json_is_named(change, message):
    fields = json.loads(td.plan(network(), 0.5, methods="svd", layers=["0", "3"]).to_json())
    change(fields)
    with pytest.raises(td.CompressionError, match=f"no plan, or a damaged one: .*{message}"):
        td.Plan.from_json(json.dumps(fields))


def test_json_of_a_newer_version_is_refused():
    found = json.loads(td.plan(network(), 0.5, methods=("svd",)).to_json())
    with pytest.raises(td.CompressionError, match="newer"):
        td.Plan.from_json(json.dumps({**found, "version": 99}))


def test_another_model_is_refused_and_the_first_difference_named():
    plan = td.plan(network(), 0.6, layers=["3", "6"], methods=CLOSED)
    other = network()
    other[3] = nn.Conv2d(16, 24, 3, padding=1, stride=1)
    with pytest.raises(td.CompressionError, match=r"layer '3' has stride=\(2, 2\), here \(1, 1\)"):
        plan.apply(other)
    with pytest.raises(td.CompressionError, match="no layer '3'"):
        plan.apply(network()[:3])
    with pytest.raises(td.CompressionError, match="layer '3' is dense, here it is a"):
        plan.apply(plan.apply(network()))


def test_a_plan_is_carried_out_in_place():
    model = network()
    plan = td.plan(model, 0.6, layers=["3", "6"], methods=("tucker",))
    small = plan.apply(model)
    assert plan.apply(model, inplace=True) is model
    x = images()[0]
    assert torch.equal(model(x), small(x))


def test_editing_takes_from_the_curve_and_keeps_the_budget():
    plan = td.plan(network(), 0.6, layers=["3", "6"], methods=CLOSED)
    edited = plan.edit("3", "tucker", ratio=0.9)
    assert edited["3"].choice.method == "tucker"
    assert edited["3"].choice.parameters <= 0.1 * plan["3"].spec.numel
    assert edited["6"] == plan["6"]
    with pytest.raises(td.CompressionError, match="the budget is"):
        plan.edit("3", "dense").edit("6", "dense")
    with pytest.raises(td.CompressionError, match="unknown method 'cpp'"):
        plan.edit("3", "cpp", ratio=0.9)
    with pytest.raises(td.CompressionError, match="layer '3': tucker reaches"):
        plan.edit("3", "tucker", ratio=0.9999)
    with pytest.raises(td.CompressionError, match="unknown layer"):
        plan.edit("4", "dense")


def test_a_layer_on_which_the_output_hangs_gets_more():
    """Scaling the last layers' inputs down makes one of two parallel branches matter little."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.loud, self.quiet = nn.Conv2d(8, 32, 3), nn.Conv2d(8, 32, 3)
            self.head = nn.Linear(32, 5)

        def forward(self, x):
            return self.head((self.loud(x) + 1e-3 * self.quiet(x)).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Branches(), torch.randn(32, 8, 6, 6)
    plan = td.plan(model, 0.7, layers=["loud", "quiet"], methods=("tucker",), data=[x])
    assert plan["loud"].choice.parameters > 3 * plan["quiet"].choice.parameters
    unweighted = td.plan(model, 0.7, layers=["loud", "quiet"], methods=("tucker",))
    assert unweighted["loud"].choice.parameters < 3 * unweighted["quiet"].choice.parameters


@pytest.mark.parametrize("metric", ["scaled_weights", "scaled_features", lambda w, v: (w - v).abs().max()])
def test_any_metric_plugs_in(metric):
    plan = td.plan(network(), 0.6, layers=["3", "6"], methods=("tucker",), metric=metric, data=images())
    assert plan.cost[1] <= plan.budget
    errors = [option.error for option in plan["3"].options if option.method == "tucker"]
    assert all(error > 0 for error in errors)


def test_the_change_that_a_trial_shows_belongs_to_the_error_by_the_plans_metric():
    def plan(factor):
        def metric(weight, approximation):
            return factor * (weight - approximation).norm() / weight.norm()

        return td.plan(network(), 0.6, layers=["3", "6"], methods=("tucker",), metric=metric, data=images())

    ones, thousands = plan(1.0), plan(1000.0)
    for layer in ("3", "6"):
        for one, thousand in zip(ones[layer].options, thousands[layer].options, strict=True):
            assert thousand.error == pytest.approx(1000 * one.error)
            assert thousand.loss == pytest.approx(one.loss)
    assert max(option.loss for option in ones["3"].options) > 0


def test_registered_metrics_are_computed_as_they_are():
    model = network()
    plan = td.plan(model, 0.6, layers="3", methods=("tucker",), metric="absolute_weights")
    choice = min((o for o in plan["3"].options if o.method == "tucker"), key=lambda option: option.parameters)
    layer = td.TuckerConv.from_conv(model[3], rank=choice.rank)
    true = METRICS["absolute_weights"].function(model[3].weight.detach().double(), layer.weight.detach().double())
    assert choice.error == pytest.approx(float(true), rel=1e-6)


def test_what_is_missing_is_named():
    with pytest.raises(td.CompressionError, match="example_inputs"):
        td.plan(network(), 0.5, objective="macs")
    with pytest.raises(td.CompressionError, match="unknown objective 'flops'"):
        td.plan(network(), 0.5, objective="flops")  # type: ignore[arg-type]
    with pytest.raises(td.CompressionError, match="unknown method"):
        td.plan(network(), 0.5, methods=("cpd",))
    with pytest.raises(td.CompressionError, match="unknown metric"):
        td.plan(network(), 0.5, metric="weights")
    with pytest.raises(td.CompressionError, match="needs inputs"):
        td.plan(network(), 0.5, metric="relative_features", methods=CLOSED)
    with pytest.raises(td.CompressionError, match="spent after one pass"):
        td.plan(network(), 0.5, data=(x for x in images()), methods=CLOSED)
    with pytest.raises(td.CompressionError, match="ratio must be"):
        td.plan(network(), 1.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_passed_over_unless_their_layer_is_named(value):
    model = network()
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = value
    plan = td.plan(model, 0.5, methods=("tucker",))
    assert any(name == "3" and "weights are NaN or infinite" in reason for name, reason in plan.left)
    with pytest.raises(td.CompressionError, match="layer '3': 1 of 3456 weights are NaN or infinite"):
        td.plan(model, 0.5, layers=["3", "6"])


def test_a_model_without_values_is_refused():
    with pytest.raises(td.CompressionError, match=r"no layer can be decomposed\.\n.*'0'.*meta device"):
        td.compress(network().to("meta"), 0.5)


def test_what_cannot_be_decomposed_is_passed_over_unless_it_is_named():
    model = network()
    model[3].register_forward_hook(lambda *_: None)
    plan = td.plan(model, 0.5, methods=("tucker",))
    assert "3" not in [entry.layer for entry in plan.layers]
    assert [(name, "hooks" in reason) for name, reason in plan.left] == [("3", True), ("9", False)]  # which is linear
    assert td.report(plan.apply(model)).left == plan.left
    with pytest.raises(td.CompressionError, match=r"can be reached is 0\.\d+\.\nleft dense: '3': .*hooks"):
        td.plan(model, 0.999, methods=("tucker",))
    with pytest.raises(td.CompressionError, match=r"layer '3'.*hooks"):
        td.plan(model, 0.5, layers=["3", "6"])


class Turned(nn.Linear):
    """As some models have it: what nn.Linear does, written otherwise."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


def more_than_plain():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 24, 3)),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Turned(24, 20),
    )
    model[2].register_forward_hook(lambda *_: None)
    return model.eval()


@pytest.mark.parametrize("data", [None, torch.randn(16, 3, 8, 8)])
def test_layers_that_are_more_than_plain_are_planned_on_demand(data):
    allowed: Any = {"hooks": "keep", "parametrized": "bake", "allow_subclasses": True}
    model = more_than_plain()
    with pytest.raises(td.CompressionError, match=r"no layer can be decomposed\.\n(.*\n)*.*pass parametrized='bake'"):
        td.plan(model, 0.5)
    plan = td.plan(model, 0.5, methods=CLOSED, data=data, **allowed)
    assert [entry.layer for entry in plan.layers] == ["0", "2", "5"]
    assert td.Plan.from_json(plan.to_json()) == plan
    for name in ("0", "2", "5"):
        small: Any = td.compress(model, 0.5, layers=name, methods=CLOSED, data=data, **allowed)
        assert isinstance(small.get_submodule(name), td.FactorizedConv)
        assert small(torch.randn(1, 3, 8, 8)).isfinite().all()
    with pytest.raises(td.CompressionError, match="hooks must be 'refuse' or 'keep'"):
        td.plan(model, 0.5, hooks="lose")  # type: ignore[arg-type]


def test_the_table_and_the_picture(tmp_path):
    plan = td.plan(network(), 0.6, methods=CLOSED)
    assert str(plan).splitlines()[0].split() == ["layer", "method", "rank", "relative_weights", "parameters"]
    assert "removed; the budget is" in str(plan)
    figure = plan.plot(str(tmp_path / "plan.png"))
    assert (tmp_path / "plan.png").stat().st_size > 0
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert len(panels) == len(plan.layers)
    for panel, entry in zip(panels, plan.layers, strict=True):
        *curves, chosen = panel.get_lines()
        assert [curve.get_label() for curve in curves] == list(CLOSED)
        assert all((np.diff(curve.get_ydata()) <= 0).all() for curve in curves)  # more never costs accuracy
        assert np.asarray(chosen.get_ydata()).tolist() == [entry.choice.error]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_compress_keeps_the_type_and_the_mode(dtype):
    model = network().to(dtype).train()
    data = [batch.to(dtype) for batch in images()]
    small = td.compress(model, 0.6, layers=["3", "6"], methods=("tucker",), data=data)
    assert small.training
    assert {value.dtype for value in small.parameters()} == {dtype}
    assert small.eval()(data[0]).isfinite().all()


def test_compress_with_data_is_nearer_to_the_original_than_without():
    model, data = network(), images(64)
    plain = td.compress(model, 0.8, layers=["3", "6"], methods=CLOSED)
    fitted = td.compress(model, 0.8, layers=["3", "6"], methods=CLOSED, data=data)
    x = images(16, seed=7)[0]
    with torch.no_grad():
        assert (fitted(x) - model(x)).norm() < (plain(x) - model(x)).norm()


def test_compress_refuses_an_unknown_fit_before_any_work():
    def never(*args):
        raise AssertionError("the model ran")

    model = network()
    model.register_forward_pre_hook(never)
    with pytest.raises(td.CompressionError, match="unknown fit"):
        td.compress(model, 0.5, data=[torch.zeros(2, 3, 8, 8)], fit="everything")  # type: ignore[arg-type]


def test_compress_sums_moments_once_unless_they_are_too_large_to_be_kept(monkeypatch):
    summed = []

    def note(model, inputs, names, **how):
        summed.append(list(names))
        return td.input_moments(model, inputs, names, **how)

    for module in (compression, estimates):
        monkeypatch.setattr(module, "input_moments", note)
    model, data = network(), images()
    first = td.compress(model, 0.8, methods=CLOSED, data=data)
    assert len(summed) == 1
    monkeypatch.setattr(estimates, "_KEPT", 0)
    second = td.compress(model, 0.8, methods=CLOSED, data=data)
    assert len(summed) == 3
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


def test_layers_are_tried_after_few_sweeps(monkeypatch):
    told = []

    def note(kernel, rank, *, solver, generator):
        told.append(solver)
        return cp(kernel, rank, solver=solver, generator=generator)

    monkeypatch.setattr(cp_layers, "cp", note)
    td.plan(network(), 0.8, methods=("cp",), layers=["3", "6"], data=images())
    assert len(told) >= 4
    assert set(told) == {td.CPConv.quick(td.CPOptions())}


def test_progress_tells_each_layer_as_soon_as_it_is_done():
    seen = []
    td.plan(network(), 0.8, methods="svd", progress=lambda done, total, what: seen.append((done, total, what)))
    assert [done for done, _, _ in seen] == [1, 2, 3, 4]
    assert {what for _, _, what in seen} == {"plan: 0", "plan: 3", "plan: 6", "plan: 9"}


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3)

    def forward(self, x):
        return self.used(x)


def test_a_layer_that_no_forward_reaches_is_passed_over_unless_it_is_named():
    x = torch.randn(4, 3, 8, 8)
    plan = td.plan(Unused(), 0.5, methods=("tucker",), metric="relative_features", data=x)
    assert [entry.layer for entry in plan.layers] == ["used"]
    assert plan.left == (("unused", "the forward never reaches it."),)
    with pytest.raises(td.CompressionError, match="never reached 'unused'"):
        td.plan(Unused(), 0.5, layers="*", methods=("tucker",), data=x)


def test_a_plan_that_leaves_all_dense_gives_a_copy():
    model = network()
    plan = td.plan(model, 0.05, layers=["3", "6"], methods=("tucker",))
    for entry in plan.layers:
        plan = dataclasses.replace(plan, budget=plan.cost[0]).edit(entry.layer, "dense")
    copied: Any = plan.apply(model)
    assert copied is not model
    assert copied[3].weight is not model[3].weight


def test_a_module_in_two_places_is_replaced_in_both_in_place():
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    td.plan(model, 0.5, methods=("tucker",)).apply(model, inplace=True)
    assert isinstance(model[0], td.FactorizedConv)
    assert model[0] is model[2]


def test_a_plan_for_layers_that_share_a_weight_refuses_a_model_where_they_do_not():
    model = nn.ModuleDict({"words": nn.Embedding(40, 32), "head": nn.Linear(32, 40, bias=False)})
    apart = copy.deepcopy(model)
    model["head"].weight = model["words"].weight
    plan = td.plan(model, 0.5)
    plan.apply(model)
    for other in (apart, nn.ModuleDict({"words": apart["words"]})):
        with pytest.raises(td.CompressionError, match="layers 'words' and 'head' share a weight, here they do not"):
            plan.apply(other)


def test_an_exact_layer_is_no_reason_to_divide_by_zero():
    model = network()
    with torch.no_grad():
        model[6].weight.zero_()
    plan = td.plan(model, 0.6, layers=["3", "6"], data=images())
    assert plan.cost[1] <= plan.budget


@pytest.mark.parametrize("layers", [None, "*"])
def test_what_is_skipped_is_named_by_the_plan_and_by_the_report(layers):
    plan = td.plan(network(), 0.5, methods="svd", layers=layers, skip="9")
    assert [name for name, _ in plan.left] == ["9"]
    assert "left dense: '9': skipped" in str(plan)
    assert [name for name, _ in td.report(plan.apply(network())).left] == ["9"]


def test_a_plan_is_made_and_carried_out_with_what_methods_are_told():
    methods = {"cp": td.CPOptions(spatial="joint", starts=("orthogonal", "random")), "tucker": None}
    plan = td.plan(network(), 0.6, layers=["3", "6"], methods=methods)
    assert plan.method_options == (("cp", methods["cp"]),)
    assert {option.axes for option in plan["3"].options if option.method == "cp"} == {((0, 1),)}
    plan = plan.edit("3", "cp", 0.7)
    again = td.Plan.from_json(plan.to_json())
    assert again == plan
    small: Any = again.apply(network(), progress=False)
    choice = plan["3"].choice
    expected = td.CPConv.from_conv(network()[3], rank=choice.rank, axes=choice.axes, solver=methods["cp"], seed=0)
    assert torch.equal(small[3].weight, expected.weight)
    with pytest.raises(td.CompressionError, match="unknown solver"):
        td.plan(network(), 0.6, methods={"cp": td.TTOptions()})


def test_a_plan_from_before_methods_could_be_told_something_loads():
    plan = td.plan(network(), 0.5, methods="svd")
    fields = json.loads(plan.to_json())
    del fields["method_options"]
    assert td.Plan.from_json(json.dumps(fields)) == plan
