import itertools

import numpy as np
import pandas as pd
import pytest

import tdcompress as td
from tdcompress.correlation.bootstrap import Bootstrap, _weighted_tau, draws
from tdcompress.correlation.compare import Comparison
from tdcompress.correlation.correlate import Correlation
from tdcompress.correlation.table import grouped
from tdcompress.errors import CompressionError


def table(layers=5, runs=3, noise=0.5, seed=0):
    """Trials whose performance follows `good`, less so `fair`, and not at all `bad`."""
    generator = np.random.default_rng(seed)
    rows = itertools.product(range(layers), ["cp", "tucker", "tt"], [0.5, 0.75, 0.9], range(runs))
    frame = pd.DataFrame(rows, columns=["layer", "method", "ratio", "run"])
    cells = frame.groupby(["layer", "method", "ratio"]).ngroup().to_numpy()
    size = cells.max() + 1
    truth = generator.normal(size=size)[cells]
    frame["test_error"] = truth
    frame["good"] = truth + (noise * generator.normal(size=size))[cells]
    frame["fair"] = truth + (3 * noise * generator.normal(size=size))[cells]
    frame["bad"] = generator.normal(size=size)[cells] + 0.01 * generator.normal(size=len(frame))
    return frame


def repeated_tau(x, y, weights, variant):
    """From the definition: every row as often as it was drawn, copies of one row not compared."""
    rows = np.repeat(np.arange(len(x)), weights)
    pairs = [(i, j) for i, j in itertools.combinations(rows, 2) if i != j]
    signs = np.array([(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs])
    over = signs.prod(axis=1).sum()
    return over / (len(pairs) if variant == "a" else np.sqrt(np.prod((signs != 0).sum(axis=0))))


def width(found: Correlation | Comparison) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


class TestWeightedTau:
    @pytest.mark.parametrize("variant", ["a", "b"])
    def test_equals_the_definition(self, variant):
        generator = np.random.default_rng(0)
        for _ in range(50):
            x, y = generator.integers(0, 6, (2, 12)).astype(float)
            weights = generator.integers(0, 3, 12)
            (found,) = _weighted_tau(x, y, weights[None].astype(float), variant)
            assert found == pytest.approx(repeated_tau(x, y, weights, variant))

    @pytest.mark.parametrize("variant", ["a", "b"])
    def test_each_row_once_is_kendall_s_tau(self, variant):
        frame = table(runs=1)
        x, y = frame["good"].to_numpy(), frame["test_error"].to_numpy()
        (found,) = _weighted_tau(x, y, np.ones((1, len(x))), variant)
        assert found == pytest.approx(td.kendall_tau(x, y, variant).tau)

    def test_one_row_alone_says_nothing(self):
        assert np.isnan(_weighted_tau(np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.array([[3.0, 0.0]]), "a")).all()

    def test_large_tables_are_cut_into_blocks(self, monkeypatch):
        frame = table(runs=1)
        x, y = frame["good"].to_numpy(), frame["test_error"].to_numpy()
        weights = np.random.default_rng(0).integers(0, 3, (7, len(x))).astype(float)
        whole = _weighted_tau(x, y, weights, "b")
        monkeypatch.setattr("tdcompress.correlation.bootstrap._AT_A_TIME", 3 * len(x))
        assert _weighted_tau(x, y, weights, "b") == pytest.approx(whole)


class TestDraws:
    def test_a_trial_comes_with_its_runs_and_a_layer_with_its_trials(self):
        frame = table()
        groups = grouped(frame, ["good", "test_error"], ("layer", "method", "ratio"), "run")
        units = {Bootstrap("trials", 200): ["layer", "method", "ratio"], Bootstrap("layers", 200): ["layer"]}
        for bootstrap, keys in units.items():
            (weights,) = draws(groups, bootstrap)
            same = frame.groupby(keys).ngroup().to_numpy()
            for number in range(same.max() + 1):
                assert (weights[:, same == number] == weights[:, same == number][:, :1]).all()
            assert weights.mean() == pytest.approx(1, abs=0.1)

    def test_many_come_in_pieces(self, monkeypatch):
        groups = grouped(table(), ["good", "test_error"], "layer", "run")
        (whole,) = draws(groups, Bootstrap("layers", 300))
        monkeypatch.setattr("tdcompress.correlation.bootstrap._AT_A_TIME", 100 * len(groups.trials))
        pieces = list(draws(groups, Bootstrap("layers", 300)))
        assert [len(piece) for piece in pieces] == [100, 100, 100]
        assert np.concatenate(pieces).shape == whole.shape


class TestInterval:
    def test_holds_the_mean_and_depends_on_the_seed_alone(self):
        frame = table()
        found = td.correlate(frame, "good", "test_error", bootstrap=Bootstrap(seed=1))
        assert found.low is not None
        assert found.high is not None
        assert -1 <= found.low < found.mean < found.high <= 1
        assert found == td.correlate(frame, "good", "test_error", bootstrap=Bootstrap(seed=1))
        assert found != td.correlate(frame, "good", "test_error", bootstrap=Bootstrap(seed=2))
        assert f"[{found.low:.2f}, {found.high:.2f}]" in str(found)

    def test_none_is_asked_for_by_default(self):
        found = td.correlate(table(), "good", "test_error")
        assert (found.low, found.high) == (None, None)
        assert "[" not in str(found)

    def test_covers_the_truth_about_as_often_as_it_says(self):
        """τ of a bivariate normal with correlation ρ is 2/π · asin ρ."""
        truth = 2 / np.pi * np.arcsin(1 / np.sqrt(1 + 0.5**2))
        inside = 0
        for seed in range(100):
            frame = table(layers=6, runs=1, seed=seed)
            found = td.correlate(frame, "good", "test_error", bootstrap=Bootstrap("trials", 300))
            inside += found.low <= truth <= found.high
        assert 85 <= inside <= 100

    def test_runs_of_one_measurement_do_not_make_it_surer(self):
        once, thrice = (
            table(runs=1),
            table(runs=1).drop(columns="run").merge(pd.DataFrame({"run": range(3)}), how="cross"),
        )
        first, second = (
            td.correlate(frame, "good", "test_error", bootstrap=Bootstrap("trials")) for frame in (once, thrice)
        )
        assert (first.low, first.high) == pytest.approx((second.low, second.high))

    def test_trials_of_a_layer_that_move_together_widen_it(self):
        frame = table(layers=8, runs=1)
        shift = np.random.default_rng(1).normal(size=8)[frame["layer"]] * 3
        frame["good"] += shift
        trials, layers = (
            td.correlate(frame, "good", "test_error", bootstrap=Bootstrap(unit)) for unit in ("trials", "layers")
        )
        assert width(layers) > width(trials)

    @pytest.mark.parametrize(
        ("unit", "resamples", "message"),
        [
            ("runs", 2000, "draws 'trials' or 'layers', not 'runs'"),
            ("trials", 10, "at least 100 resamples"),
        ],
    )
    def test_what_cannot_be_is_refused(self, unit, resamples, message):
        with pytest.raises(CompressionError, match=message):
            td.Bootstrap(unit, resamples)

    @pytest.mark.parametrize("ask", [td.correlate, td.regret])
    def test_a_unit_alone_is_no_bootstrap(self, ask):
        with pytest.raises(
            CompressionError, match=r"must be a td.Bootstrap, such as td.Bootstrap\('layers'\), not 'lay"
        ):
            ask(table(), "good", "test_error", bootstrap="layers")

    def test_one_layer_is_not_enough_for_layers(self):
        with pytest.raises(CompressionError, match="a bootstrap over layers needs at least 2 of them; the table has 1"):
            td.correlate(table(layers=1), "good", "test_error", bootstrap=Bootstrap("layers"))


class TestCompare:
    def test_finds_the_better_one_and_is_antisymmetric(self):
        frame = table()
        found, turned = (td.compare(frame, *pair, "test_error") for pair in (("good", "bad"), ("bad", "good")))
        assert found.low > 0
        assert found.confidence > 0.99
        assert turned.difference == -found.difference
        assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))

    def test_difference_is_that_of_correlate(self):
        frame = table()
        for across in ("layer", "method", ("layer", "method", "ratio")):
            found = td.compare(frame, "good", "fair", "test_error", across)
            means = [td.correlate(frame, error, "test_error", across).mean for error in ("good", "fair")]
            assert (found.first, found.second) == pytest.approx(tuple(means))
            assert found.difference == pytest.approx(means[0] - means[1])

    def test_an_error_does_not_beat_itself(self):
        frame = table()
        frame["doubled"] = 2 * frame["good"]
        found = td.compare(frame, "good", "doubled", "test_error")
        assert (found.difference, found.low, found.high, found.confidence) == (0, 0, 0, 0.5)

    def test_pairing_sharpens(self):
        """Two errors that go up and down together: the difference is surer than either τ."""
        frame = table()
        frame["close"] = frame["good"] + 0.01 * np.random.default_rng(3).normal(size=len(frame))
        found = td.compare(frame, "good", "close", "test_error")
        alone = td.correlate(frame, "good", "test_error", bootstrap=Bootstrap("trials"))
        assert width(found) < width(alone) / 3

    def test_reads_as_a_sentence(self):
        text = str(td.compare(table(), "good", "bad", "test_error", bootstrap=Bootstrap("layers", 200)))
        assert text.startswith("Δτ = +")
        assert text.endswith("% of the resamples of layers")


class TestRegret:
    def test_equals_the_definition(self):
        frame = table()
        found = td.regret(frame, "fair", "test_error")
        lost = []
        for _, part in frame.groupby(["run", "layer", "ratio"]):
            lost.append(part.loc[part["fair"].idxmin(), "test_error"] - part["test_error"].min())
        assert found.mean == pytest.approx(np.mean(lost))
        assert found.worst == pytest.approx(max(lost))
        assert found.right == pytest.approx(np.mean(np.array(lost) == 0))
        assert found.groups == len(lost)
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.mean < found.high

    def test_the_performance_itself_chooses_best(self):
        found = td.regret(table(), "test_error", "test_error")
        assert (found.mean, found.low, found.high, found.worst, found.right) == (0, 0, 0, 0, 1)
        assert found.chance > 0

    def test_a_tie_is_a_choice_by_lot(self):
        frame = table()
        frame["same"] = 1.0
        found = td.regret(frame, "same", "test_error")
        assert found.mean == pytest.approx(found.chance)

    def test_accuracies_turn_it_around(self):
        frame = table()
        frame["accuracy"] = 1 - frame["test_error"]
        errors = td.regret(frame, "good", "test_error")
        accuracies = td.regret(frame, "good", "accuracy", higher_is_better=True)
        assert accuracies.mean == pytest.approx(errors.mean)

    def test_a_choice_among_layers_has_no_interval_over_them(self):
        found = td.regret(table(), "good", "test_error", across=("layer", "method"))
        assert (found.low, found.high) == (None, None)
        assert found.groups == 9
        assert str(found).startswith("regret = ")

    def test_choices_are_drawn_by_layers(self):
        with pytest.raises(CompressionError, match=r"its bootstrap draws layers: td.Bootstrap\('layers'\)"):
            td.regret(table(), "good", "test_error", bootstrap=Bootstrap("trials"))

    def test_the_same_seed_gives_the_same_interval(self):
        assert td.regret(table(), "good", "test_error") == td.regret(table(), "good", "test_error")
