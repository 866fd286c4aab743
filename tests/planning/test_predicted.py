"""Plans by the predicted loss: read off, without trials, and in nats."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import tdcompress as td
from tdcompress.fisher import fisher_factors


def classifier():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 6)
        ).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(120, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def planned(images):
    return td.plan(classifier(), 0.7, metric="predicted_loss", data=images)


def test_nothing_is_tried_and_errors_are_losses(images, monkeypatch):
    def tried(*_):
        raise AssertionError("a trial")

    monkeypatch.setattr("tdcompress.planning.estimates.Trials", tried)
    plan = td.plan(classifier(), 0.7, methods=("svd", "tucker"), metric="predicted_loss", data=images)
    assert plan.cost[1] <= plan.budget
    assert all(option.loss == option.error for entry in plan.layers for option in entry.options)
    with pytest.raises(AssertionError, match="a trial"):
        td.plan(classifier(), 0.7, methods=("svd",), metric="predicted_loss", data=images, trials=True)
    with pytest.raises(AssertionError, match="a trial"):
        td.plan(classifier(), 0.7, methods=("svd",), metric="relative_features", data=images)
    td.plan(classifier(), 0.7, methods=("svd",), metric="relative_features", data=images, trials=False)


def test_what_is_foreseen_for_an_option_is_what_its_layer_is_foreseen_to_lose(planned, images):
    model = classifier()
    factors = fisher_factors(model, images, draws=1, joint=False)
    for entry in planned.layers:
        layer = model.get_submodule(entry.layer)
        curve = [
            option for option in entry.options if option.method == "svd" and (not option.axes or not option.axes[1])
        ]
        for option in curve[:: max(1, len(curve) // 4)]:
            small = td.SVDConv.from_conv(layer, rank=option.rank, axes=option.axes, whiten=factors[entry.layer])
            loss = factors[entry.layer].loss_between(layer, small)
            assert option.error == pytest.approx(loss, rel=0.05, abs=1e-4)


def test_is_foreseen_to_lose_less_than_what_weights_would_choose(planned):
    by_weights = td.plan(classifier(), 0.7)
    loss = 0.0
    for entry, other in zip(planned.layers, by_weights.layers, strict=True):
        same = {(option.method, option.rank, option.axes): option.loss for option in entry.options}
        loss += same[other.choice.method, other.choice.rank, other.choice.axes]
    assert by_weights.cost[1] <= planned.budget
    assert sum(entry.choice.loss for entry in planned.layers) < loss


def test_trials_show_what_the_predicted_loss_is_worth(images):
    plan = td.plan(classifier(), 0.7, methods=("svd",), metric="predicted_loss", data=images, trials=True)
    for entry in plan.layers:
        smaller = sorted((option for option in entry.options if option.method == "svd"), key=lambda one: one.error)
        assert [one.loss for one in smaller] == sorted(one.loss for one in smaller)
        # Below what was tried the change of the output goes with the predicted loss, as it should.
        first, second = (one for one in smaller if one.error > 0) if len(smaller) == 2 else smaller[1:3]
        assert first.loss / second.loss == pytest.approx(first.error / second.error, rel=1e-6)


def test_layers_that_share_a_weight_lose_for_both():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = Tied().eval(), torch.randn(200, 12)
    plan = td.plan(model, 0.4, layers=["first", "second", "head"], metric="predicted_loss", data=inputs)
    factors = fisher_factors(model, inputs, draws=1, joint=False)
    entry = next(one for one in plan.layers if one.layer == "first")
    assert entry.tied == ("second",)
    smallest = min((option for option in entry.options if option.method == "svd"), key=lambda one: one.parameters)
    both = sum(factors[name].loss_of_all(model.first.weight, centred=True) for name in ("first", "second"))
    moment = factors["first"].whitening(centred=True)
    rows = moment.with_outputs(model.first.weight.detach().double()[None] @ moment.channel_root)[0]
    squares = torch.linalg.svdvals(rows).square()
    share = float(squares[smallest.rank[0] :].sum() / squares.sum())
    assert smallest.error == pytest.approx(share * both, rel=1e-3)


def test_what_has_no_moments_is_left_or_refused():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(30, 16), nn.Flatten(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 5)).eval()
    tokens = torch.randint(30, (20, 3), generator=torch.Generator().manual_seed(0))
    plan = td.plan(model, 0.5, methods=("svd",), metric="predicted_loss", data=tokens)
    assert [entry.layer for entry in plan.layers] == ["2", "4"]
    with pytest.raises(td.CompressionError, match="layer '0': its inputs are numbers of rows"):
        td.plan(model, 0.5, methods=("svd",), layers=["0", "2"], metric="predicted_loss", data=tokens)
    with pytest.raises(td.CompressionError, match="trials=True needs inputs"):
        td.plan(model, 0.5, trials=True)
    with pytest.raises(td.CompressionError, match="metric='predicted_loss' needs inputs"):
        td.plan(model, 0.5, metric="predicted_loss")


def test_compress_goes_on_from_what_was_gathered(images, monkeypatch):
    calls = []

    def counted(*arguments, **how):
        calls.append(arguments)
        return {}

    monkeypatch.setattr("tdcompress.compression.input_moments", counted)
    model = classifier()
    small = td.compress(model, 0.7, metric="predicted_loss", data=images)
    assert not calls
    assert sum(p.numel() for p in small.parameters()) < 0.4 * sum(p.numel() for p in model.parameters())


def test_the_first_inputs_tell_what_layers_are_worth_and_all_what_they_see(images, monkeypatch):
    model, asked = classifier(), []
    many = images.repeat(3, 1, 1, 1)
    curves = [
        [option.error for entry in td.plan(model, 0.7, methods=("svd",), metric="predicted_loss", data=data).layers
         for option in entry.options]
        for data in (many, many[:256], many[:255])
    ]  # fmt: skip
    assert curves[0] == curves[1] != curves[2]
    moments = td.input_moments

    def noted(model, inputs, names, **how):
        asked.append(sum(map(len, inputs)))
        return moments(model, inputs, names, **how)

    monkeypatch.setattr("tdcompress.compression.input_moments", noted)
    td.compress(model, 0.7, methods=("tucker",), metric="predicted_loss", data=list(many.split(40)))
    assert asked == [360]


def test_of_data_that_another_pass_would_shuffle_all_passes_see_the_same_first_inputs(images, monkeypatch):
    seen = []

    def noted(model, inputs, names, **how):
        seen.append(torch.cat(list(inputs)))
        return fisher_factors(model, inputs, names, **how)

    monkeypatch.setattr("tdcompress.planning.estimates.fisher_factors", noted)
    monkeypatch.setattr("tdcompress.planning.estimates._MOMENTS", 1)  # a pass for every layer
    generator = torch.Generator().manual_seed(0)
    shuffled = DataLoader(images.repeat(3, 1, 1, 1), batch_size=40, shuffle=True, generator=generator)
    td.plan(classifier(), 0.7, methods=("svd",), metric="predicted_loss", data=shuffled)
    assert len(seen) == 3
    assert all(len(one) == 256 and torch.equal(one, seen[0]) for one in seen)
