"""td.distill and td.distillation_loss: what comes nearer, what stays as it was, and what ends it."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tdcompress as td
from tdcompress.batches import Data, same_every_pass
from tdcompress.calibration import lessons
from tdcompress.calibration.descent import Best, Judge
from tdcompress.calibration.distillation_loss import Change, information
from tdcompress.calibration.lessons import divided
from tdcompress.outputs import Output
from tests.calibration.test_calibrate import images, network, same, small_of, state
from tests.drawing import more

SHORT = td.DistillationOptions(passes=3, local=None)
EIGHT = td.DistillationOptions(passes=8, batch_size=16)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def small(model):
    return small_of(model)


def options(**changes):
    return td.DistillationOptions(**{"passes": 3, "local": None, "batch_size": 16, **changes})


def on_held_out(model, small, data, options, seed=0):
    """How far a model is from the original on what `distill` holds out."""
    parts = divided(data, options.batch_size, options.held_out, torch.Generator().manual_seed(seed))
    parts = parts.laid_out(model, small)
    return Judge(parts.held_out, parts.suited(model), None).change(parts.suited(small)).value


def divergence(model, small, data):
    with torch.no_grad():
        pairs = [(model(x).log_softmax(1), small(x).log_softmax(1)) for x in data]
    return sum(float(F.kl_div(after, before, log_target=True, reduction="sum")) for before, after in pairs)


class TestLoss:
    def test_of_logits_it_is_the_divergence_at_the_temperature_times_its_square(self):
        target, output = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for temperature in (1.0, 4.0):
            before, after = ((values / temperature).softmax(1) for values in (target, output))
            expected = temperature**2 * (before * (before / after).log()).sum(1).mean()
            torch.testing.assert_close(td.distillation_loss(output, target, temperature=temperature), expected)

    def test_of_values_it_is_the_relative_squared_change_of_the_batch(self):
        target, output = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
        expected = (output - target).norm() ** 2 / target.norm() ** 2
        torch.testing.assert_close(td.distillation_loss(output, target, logits=False), expected)
        assert td.distillation_loss(torch.ones(2, 1), torch.zeros(2, 1)) == 2  # nothing to be relative to

    def test_gradients_go_to_the_output_alone_whatever_wraps_it(self):
        target, output = torch.randn(2, 3, 4, 5).requires_grad_().unbind()
        target.retain_grad()
        output.retain_grad()
        td.distillation_loss({"logits": output}, (target,), logits=1).backward()
        assert target.grad is None
        assert output.grad is not None
        assert output.grad.abs().sum() > 0

    def test_gradients_of_a_squared_change_are_right_twice_over_and_by_transformations(self):
        target, output = torch.randn(2, 3, 4, dtype=torch.float64).unbind()

        def loss(values):
            return td.distillation_loss(values, target, logits=False)

        leaf = output.clone().requires_grad_()
        assert torch.autograd.gradcheck(loss, leaf)
        assert torch.autograd.gradgradcheck(loss, leaf)
        expected = 2 * (output - target) / target.square().sum()
        torch.testing.assert_close(torch.func.grad(loss)(output), expected)
        half = output.bfloat16().requires_grad_()
        loss(half).backward()
        torch.testing.assert_close(half.grad, expected.bfloat16(), rtol=2e-2, atol=1e-3)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"temperature": 0.0}, "temperature must be a number above 0"),
            ({"output": torch.zeros(4, 6)}, "outputs differ in kind"),
            ({"output": torch.zeros(4, 5, 2)}, "pass logits=False"),
        ],
    )
    def test_what_cannot_be_compared_is_refused(self, arguments, message):
        with pytest.raises(td.CompressionError, match=message):
            td.distillation_loss(**{"output": torch.zeros(4, 5), "target": torch.zeros(4, 5), **arguments})


@pytest.mark.parametrize("norm", [True, *more(False)])
def test_it_comes_nearer_to_the_original_than_calibration_does_on_new_data(norm):
    model, old, new = network(norm), images(128), images(64, seed=9)
    small = small_of(model)
    found = td.distill(small, old, model, options=td.DistillationOptions(passes=10, batch_size=16))
    calibrated = td.calibrate(small, old, model)
    assert divergence(model, found.model, new) < divergence(model, calibrated, new) < divergence(model, small, new)
    assert found.calibrated is not None
    assert found.after < found.calibrated < found.before
    assert "calibrated → " in repr(found)


def test_both_models_and_the_generators_are_left_alone_and_modes_restored():
    model = network().train()
    small = small_of(model).train()
    small[4].eval()
    before, given, drawn = state(model), state(small), torch.get_rng_state()
    found = td.distill(small, images(), model, options=EIGHT).model
    assert same(state(model), before)
    assert same(state(small), given)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [m.training for m in found.modules()] == [m.training for m in small.modules()]
    assert all(module.training for module in model.modules())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for one in (model, found) for m in one.modules())
    assert all(parameter.grad is None for one in (model, small, found) for parameter in one.parameters())


def test_the_same_seed_gives_the_same_bits_and_another_one_others(model, small):
    def noisy(x):
        return x + 0.1 * torch.randn_like(x)

    first, again, other = (
        td.distill(small, images(), model, options=options(augment=noisy), seed=seed) for seed in (0, 0, 1)
    )
    assert same(state(first.model), state(again.model))
    assert first.passes == again.passes
    assert not same(state(first.model), state(other.model))


def test_steps_are_orthogonal_matrices_or_those_of_adam_and_both_come_nearer(model, small):
    muon, adam = (td.distill(small, images(), model, options=options(optimizer=name)) for name in ("muon", "adam"))
    assert same(state(muon.model), state(td.distill(small, images(), model, options=options()).model))
    assert not same(state(muon.model), state(adam.model))
    assert max(muon.after, adam.after) < min(muon.before, adam.before)


def test_what_the_original_said_is_the_same_kept_or_said_again(model, small, monkeypatch):
    kept = td.distill(small, images(), model, options=SHORT)
    monkeypatch.setattr(lessons, "_BYTES", 0)
    assert same(state(td.distill(small, images(), model, options=SHORT).model), state(kept.model))


def test_labels_are_never_looked_at(model, small):
    class Label:
        def __getattribute__(self, name):
            raise AssertionError(f"a label was looked at: {name}")

    pairs = [(x, Label()) for x in images()]
    found, expected = (td.distill(small, data, model, options=EIGHT).model for data in (pairs, images()))
    assert same(state(found), state(expected))


def test_in_place_is_the_same_model_with_the_same_values(model):
    small: Any = small_of(model)
    weight, found = small[3][0].weight, td.distill(small, images(), model, options=SHORT).model
    same_model: Any = td.distill(small, images(), model, options=SHORT, inplace=True).model
    assert same_model is small
    assert same_model[3][0].weight is weight
    assert same(state(small), state(found))


@pytest.mark.parametrize("local", [None, "all"])
def test_the_rate_is_that_of_the_share_which_is_missing_where_the_descent_begins(model, small, local, monkeypatch):
    shares = []
    monkeypatch.setattr(td.DistillationOptions, "peak_rate", lambda self, share: shares.append(share) or 1e-3)
    found = td.distill(small, images(), model, options=options(local=local))
    held_out = divided(images(), 16, 0.1, torch.Generator().manual_seed(0)).held_out
    with torch.no_grad():
        said = information(Output(model(piece), True) for piece in held_out)
    begun = found.before if found.calibrated is None else found.calibrated
    assert shares == [pytest.approx(begun / said, rel=1e-4)]


def test_what_misses_nothing_stays_and_a_rate_of_its_own_would_lead_it_away(model):
    by_itself, far = (
        td.distill(copy.deepcopy(model), images(), model, options=options(learning_rate=rate)) for rate in (None, 1e-2)
    )
    assert max(by_itself.passes) < 1e-12 < 1e-9 < min(far.passes)


@pytest.mark.parametrize("size", [3, 20])
def test_the_information_of_predictions_is_their_divergence_from_their_mean_over_all_batches(size):
    logits = 3 * torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    likely = logits.softmax(1)
    expected = (likely * (likely / likely.mean(0)).log()).sum(1).mean()
    assert information(Output(part, True) for part in logits.split(size)) == pytest.approx(float(expected))
    same_for_all = logits[:1].expand(5, -1)
    assert 0 < information([Output(same_for_all, True)]) < 1e-12


def test_a_single_prediction_tells_what_it_has_beyond_the_uniform_one():
    assert information([Output(torch.tensor([[40.0, 0.0, 0.0]]), True)]) == pytest.approx(math.log(3))
    assert information([Output(torch.zeros(1, 3), True)]) < 1e-12


@pytest.mark.parametrize("local", [None, "bias"])
def test_what_is_worse_on_the_held_out_part_is_not_taken(model, small, local):
    far = options(learning_rate=3.0, local=local)
    found = td.distill(small, images(), model, options=far)
    assert min(found.passes) > found.before >= found.after
    if local is None:
        assert same(state(found.model), state(small))
    assert found.after == on_held_out(model, found.model, images(), far)


def test_what_is_said_of_the_model_is_so(model, small):
    found = td.distill(small, images(), model, options=EIGHT)
    assert found.after == on_held_out(model, found.model, images(), EIGHT)
    assert found.after in [pytest.approx(best, rel=1e-4) for best in (min(found.passes), found.passes[-1])]
    assert found.before == on_held_out(model, small, images(), EIGHT)


@pytest.mark.parametrize(
    ("last", "taken"),
    [
        ([1.0, 1.0, 1.2, 0.9], True),  # above the best by 0.025, with a standard error of 0.053
        ([1.1, 1.1, 1.1, 1.1], False),  # clearly farther
        ([2.0, 2.0, 2.6, 1.4], False),  # no nearer than what was given
        ([math.nan, 1.0, 1.0, 1.0], False),
    ],
)
def test_the_last_pass_is_taken_unless_it_is_clearly_farther(last, taken):
    model = nn.Linear(1, 1)
    given, nearest, at_last = (Change(torch.tensor(x).double() / 4) for x in ([2.0] * 4, [1.0] * 4, last))
    best = Best(model, given)
    assert best.offer(model, nearest)
    before = best.state
    best.offer_last(model, at_last)
    assert (best.change is at_last, best.state is before) == (taken, not taken)


def test_parameters_without_gradients_and_frozen_norms_stay(model):
    small = small_of(model)
    small[9].requires_grad_(False)
    small[4].requires_grad_(False)
    found = td.distill(small, images(), model, options=options(passes=8)).model
    moved = {name for name, value in state(found).items() if not torch.equal(value, small.state_dict()[name])}
    free = {name for name, parameter in small.named_parameters() if parameter.requires_grad}
    assert moved == free | {"1.running_mean", "1.running_var"}
    small.train()[1].eval()
    found = td.distill(small, images(), model, options=options(passes=8)).model
    assert torch.equal(found.get_buffer("1.running_mean"), small[1].running_mean)
    with pytest.raises(td.CompressionError, match="no parameter of the model requires a gradient"):
        td.distill(small.requires_grad_(False), images(), model, options=SHORT)


def test_in_training_mode_it_is_the_same_network(model):
    data = torch.cat(images())
    found = td.distill(small_of(model), data, model, options=options(passes=12, learning_rate=5e-2)).model
    with torch.no_grad():
        expected = found.eval()(data)
        training = found.train()(data)
    assert float((training - expected).norm() / expected.norm()) < 0.1  # a tenth of the data was held out


@pytest.mark.parametrize("kind", ["list", "tensor", "loader"])
def test_what_is_held_out_is_not_trained_on(model, small, kind):
    everything = torch.cat(images(120))
    every: dict[str, Data] = {
        "list": list(everything.split(7)),
        "tensor": everything,
        "loader": DataLoader(TensorDataset(everything, torch.zeros(len(everything))), batch_size=6),
    }
    data = every[kind]
    taken = []

    def note(x):
        taken.append(x.clone())
        return x

    td.distill(small, data, model, options=options(augment=note, passes=2))
    seen = {float(x.sum()) for x in torch.cat(taken)}
    parts = divided(data, 16, 0.1, torch.Generator().manual_seed(0))
    held_out = {float(x.sum()) for x in torch.cat(list(parts.held_out))}
    assert not seen & held_out
    assert 12 <= len(held_out) <= 18
    assert len(seen) + len(held_out) == 120
    assert parts.steps == len(list(parts.in_order))
    assert same_every_pass(parts.in_order) == (kind != "loader")  # or calibrate runs the original for every wave


def test_few_samples_are_cut_so_that_some_are_held_out_and_one_is_refused(model, small):
    assert len(td.distill(small, images(2)[0], model, options=SHORT).passes) == 3
    loader = DataLoader(TensorDataset(torch.cat(images(8))), batch_size=4)
    assert len(td.distill(small, loader, model, options=SHORT).passes) == 3
    one = images(1)[0]
    for data in (one, [one], DataLoader(one, batch_size=1), []):
        with pytest.raises(td.CompressionError, match="too little"):
            td.distill(small, data, model, options=SHORT)
    with pytest.raises(td.CompressionError, match="spent after one pass"):
        td.distill(small, iter(images()), model, options=SHORT)


class TestInterrupted:
    def stop(self, when):
        def progress(done, total, what):
            if what.startswith("distill") and done == when:
                raise KeyboardInterrupt

        return progress

    def test_in_place_the_model_is_the_best_so_far(self, model):
        small = small_of(model)
        whole = td.distill(small, images(), model, options=EIGHT)
        with pytest.raises(KeyboardInterrupt):
            td.distill(small, images(), model, options=EIGHT, inplace=True, progress=self.stop(3))
        assert whole.calibrated is not None
        best = min(whole.before, whole.calibrated, *whole.passes[:3])
        assert best < whole.before
        assert on_held_out(model, small, images(), EIGHT) == best

    def test_otherwise_and_during_the_local_fit_it_is_as_it_was(self, model):
        small = small_of(model)
        given, before = state(small), state(model)
        with pytest.raises(KeyboardInterrupt):
            td.distill(small, images(), model, options=EIGHT, progress=self.stop(3))
        assert same(state(small), given)

        def at_once(done, total, what):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            td.distill(small, images(), model, options=EIGHT, inplace=True, progress=at_once)
        assert same(state(small), given)
        assert same(state(model), before)


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        ("NaN", {}, "NaN or infinite; look for that in the data"),
        ("NaN", {"local": "all"}, "NaN or infinite"),
        ("NaN by augmentation", {}, "NaN or infinite; look for that in the data"),
        ("good", {"learning_rate": 1e30}, r"ran away in pass \d.*lower learning_rate, which is 1e\+30"),
    ],
)
def test_what_is_not_finite_is_told_and_leaves_the_model_as_it_was(model, data, changes, message):
    small, inputs = small_of(model), images()
    given = state(small)
    if data == "NaN":
        inputs[0][3] = math.nan
    if "augmentation" in data:
        changes = {"augment": lambda x: x * math.nan}
    with pytest.raises(td.CompressionError, match=message):
        td.distill(small, inputs, model, options=options(**changes), inplace=True)
    assert same(state(small), given)
    assert not model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda x: x.detach(), "has no gradient"), (lambda x: x.exp().mul_(2), "its forward overwrites")],
)
def test_a_model_that_no_gradient_comes_back_through_is_refused(model, small, change, message):
    class Changed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return change(self.inner(x))

    given = state(small)
    with pytest.raises(td.CompressionError, match=message):
        td.distill(Changed(small), images(), Changed(model), options=SHORT, inplace=True)
    assert same(state(small), given)


class TestOptions:
    def test_features_are_compared_too(self, model, small):
        def apart(found):
            with torch.no_grad():
                pairs = [(model[:6](x), found[:6](x)) for x in images(64, seed=9)]
            return sum(float((before - after).square().sum()) for before, after in pairs)

        without, with_them = (
            td.distill(small, images(), model, options=options(passes=8, features=names, features_weight=100.0)).model
            for names in (None, "5")
        )
        assert apart(with_them) < 0.9 * apart(without)
        with pytest.raises(td.CompressionError, match=r"features=: the model has no layer 'conv9'"):
            td.distill(small, images(), model, options=options(features="conv9"))

    def test_features_are_those_of_their_own_call_whatever_overwrites_them(self, model):
        overwriting = nn.Sequential(
            *(nn.ReLU(inplace=True) if isinstance(one, nn.ReLU) else one for one in model)
        ).eval()
        found = [
            td.distill(small_of(one), images(), one, options=options(features=["3", "6"]))
            for one in (model, overwriting)
        ]
        assert same(*(state(one.model) for one in found))

    def test_patience_ends_it(self, model, small):
        found = td.distill(small, images(), model, options=options(passes=9, learning_rate=3.0, patience=2))
        assert len(found.passes) == 2

    def test_autocast_comes_nearer_too(self, model, small):
        found = td.distill(small, images(), model, options=options(passes=8, autocast=True))
        assert found.after < found.before
        assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float32}

    def test_half_precision_is_trained_in_float32_and_returned_as_it_was(self):
        model = network(norm=False).bfloat16()
        small, data = small_of(model), [x.bfloat16() for x in images()]
        found = td.distill(small, data, model, options=options(passes=8))
        assert found.after < found.before
        assert {parameter.dtype for parameter in found.model.parameters()} == {torch.bfloat16}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"passes": 0}, "passes must be a whole number from 1"),
            ({"batch_size": 2.5}, "batch_size must be a whole number"),
            ({"patience": 0}, "patience must be"),
            ({"learning_rate": -1.0}, "learning_rate must be a number above 0"),
            ({"learning_rate": 0}, "learning_rate must be a number above 0"),
            ({"clip_norm": math.inf}, "clip_norm must be"),
            ({"held_out": 1.0}, "held_out must be a share"),
            ({"augment": 3}, "augment must be a function"),
            ({"local": "al"}, "Did you mean 'all'"),
            ({"optimizer": "sgd"}, "unknown optimizer 'sgd'"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, changes, message):
        with pytest.raises(td.CompressionError, match=message):
            td.DistillationOptions(**changes)


def test_dicts_and_outputs_of_any_kind_are_taken():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 3))

        def forward(self, values, scale):
            return {"found": self.inner(values) * scale[:, None]}

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Named().eval()
        data = [{"values": torch.randn(60, 12), "scale": torch.rand(60) + 1} for _ in range(4)]
    small = td.decompose(model, "inner.0", "svd", 0.6)
    found = td.distill(small, data, model, options=td.DistillationOptions(passes=10, batch_size=20), logits=False)
    assert found.calibrated is not None
    assert found.after < min(found.before, found.calibrated)
    assert set(found.model.state_dict()) == set(small.state_dict())


class TestCompress:
    def test_it_goes_on_to_the_outputs(self, model):
        told = {"layers": ["3", "6"], "methods": ("tucker",), "data": images()}
        features, outputs = (td.compress(model, 0.8, fit=fit, **told) for fit in ("all", EIGHT))
        sizes = [sum(parameter.numel() for parameter in one.parameters()) for one in (features, outputs)]
        assert sizes[0] == sizes[1]
        again = td.compress(model, 0.8, fit=EIGHT, **told)
        assert same(state(outputs), state(again))
        new = images(64, seed=9)
        assert divergence(model, outputs, new) < divergence(model, features, new)

    def test_by_a_word_with_the_defaults(self, model):
        asked = []
        told = {"layers": "3", "methods": ("svd",), "data": images(8), "progress": lambda *done: asked.append(done)}
        td.compress(model, 0.5, fit="outputs", **told)
        assert any(what.startswith("calibrate") for _, _, what in asked)
        assert [done for done in asked if done[2].startswith("distill")][-1][0] == td.DistillationOptions().passes

    def test_without_data_there_are_no_outputs_to_be_fitted_to(self, model):
        with pytest.raises(td.CompressionError, match='fit="outputs" needs data='):
            td.compress(model, 0.5, layers="3", fit="outputs")
