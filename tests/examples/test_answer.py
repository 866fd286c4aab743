"""The page that answers: from small tables, against what `correlate`, `compare` and `regret` say of them."""

import json

import numpy as np
import pandas as pd
import pytest

import tdcompress as td
from examples.paper import answer, beyond, networks
from examples.paper.committed import studies
from tdcompress.metrics import METRICS
from tdcompress.study.groupings import comparable
from tests.examples.test_tables import synthetic

FEW = td.Bootstrap("layers", resamples=200)
LAYERS = tuple("abcdef")


def table(performance="cross_entropy", ratios=(0.1, 0.5, 0.9, 0.95, 0.99)):
    """Predicted loss orders all trials right, relative weights only those of one layer."""
    frame = synthetic(LAYERS, ("svd", "tt"), ratios, runs=1, fine_tuned=False)
    generator = np.random.default_rng(1)
    place = frame["layer"].map(LAYERS.index)
    frame["predicted_loss"] = frame["relative_weights"] * 10.0**place
    frame["output_divergence"] = generator.random(len(frame))
    frame["test_cross_entropy"] = frame["predicted_loss"] ** 0.1
    frame["test_error"] = 0.9 * frame["test_cross_entropy"] / frame["test_cross_entropy"].max()
    if performance == "bits_per_byte":
        frame = frame.drop(columns="test_error").rename(columns={"test_cross_entropy": "test_bits_per_byte"})
    return frame


@pytest.fixture(scope="module")
def tables():
    return {"net": table(), "text": table("bits_per_byte")}


@pytest.fixture(scope="module")
def found(tables):
    return networks.taus(tables, FEW)


def written(folder, frame, **choices):
    folder.mkdir(parents=True)
    frame.to_csv(folder / "results.csv", index=False)
    (folder / "settings.json").write_text(json.dumps({"choices": {"evaluated": None, **choices}}))


class TestStudies:
    def test_levels_of_one_network_are_put_together_and_no_trial_counts_twice(self, tmp_path):
        frame = table()
        written(tmp_path / "net", frame[frame["ratio"] < 0.99], name="net", ratios=[0.1, 0.5, 0.9, 0.95])
        written(tmp_path / "net-far", frame[frame["ratio"] > 0.9], name="net", ratios=[0.95, 0.99])
        pd.testing.assert_frame_equal(
            studies(tmp_path)["net"].sort_values(["layer", "method", "ratio"], ignore_index=True), frame[list(frame)]
        )

    def test_of_two_ways_the_one_with_more_trials_is_taken(self, tmp_path):
        frame = table()
        written(tmp_path / "short", frame[:7], name="net-short", evaluated=5000)
        written(tmp_path / "whole", frame[:9], name="net")
        assert len(studies(tmp_path)["net"]) == 9

    def test_a_study_without_the_errors_on_outputs_is_left_out(self, tmp_path):
        written(tmp_path / "six", table().drop(columns="predicted_loss"), name="six")
        with pytest.raises(td.CompressionError, match="no study with predicted_loss and output_divergence"):
            studies(tmp_path)
        written(tmp_path / "eight", table(), name="eight")
        assert list(studies(tmp_path)) == ["eight"]


class TestTaus:
    def test_are_what_correlate_and_compare_say_of_the_common_levels(self, tables, found):
        part = tables["net"]
        part = part[part["ratio"].isin(networks.LEVELS)]
        rows = found.set_index(["network", "across", "measure", "error"])
        for across, columns in networks.GROUPINGS.items():
            for error in METRICS:
                tau = td.correlate(part, error, "test_error", columns, bootstrap=FEW)
                rise = td.compare(part, error, "relative_weights", "test_error", columns, bootstrap=FEW)
                row = rows.loc[("net", across, "classification error", error)]
                assert row["tau"] == pytest.approx(tau.mean, abs=1e-12)
                assert (row["low"], row["high"]) == (tau.low, tau.high)
                assert (row["rise"], row["rise_low"], row["rise_high"]) == (rise.difference, rise.low, rise.high)

    def test_bits_stand_for_both_measures_where_there_is_nothing_else(self, found):
        rows = found[found["network"] == "text"].set_index(["across", "measure", "error"])
        for measure in ("cross-entropy", "classification error"):
            assert rows.loc[("all", measure, "predicted_loss"), "tau"] == 1

    def test_a_layer_that_is_alone_is_compared_with_none(self, tables):
        frame = tables["net"]
        alone = frame[(frame["layer"] == "a") | (frame["ratio"] < 0.95)]
        assert set(comparable(alone, ("layer",))["ratio"]) == {0.1, 0.5, 0.9}

    def test_what_is_settled_is_counted(self, found):
        lines = answer.in_words(found).splitlines()
        (line,) = [line for line in lines if line.startswith("| across layers | predicted loss")]
        assert line == "| across layers | predicted loss | 2 of 2 | 2 | 0 |"


class TestPage:
    def test_has_every_error_and_network_in_every_table(self, tables, found, tmp_path):
        costs = networks.regrets(tables, FEW)
        text = answer.as_markdown(tables, found, networks.duels(tables, FEW), costs)
        names = [name.replace("_", " ") for name in METRICS]
        lines = text.splitlines()
        for name in names:
            # Two measures of four groupings; two differences, where relative weights are left out; two regrets.
            differences = 0 if name == "relative weights" else 2
            assert sum(line.startswith(f"| {name} |") for line in lines) == 8 + differences + 2
        assert sum(line.startswith("| by lot |") for line in lines) == 2
        assert all(line.count("|") == 4 for line in lines if line.startswith("| predicted loss |"))
        answer.draw(found, tmp_path / "answer.png")
        assert (tmp_path / "answer.png").stat().st_size > 10_000

    def test_a_duel_is_a_paired_comparison(self, tables):
        part = tables["net"][tables["net"]["ratio"].isin(networks.LEVELS)]
        found = networks.duels(tables, FEW).set_index(["network", "across", "error"])
        for across in ("all", "layers"):
            arguments = (part, "predicted_loss", "scaled_weights", "test_cross_entropy", networks.GROUPINGS[across])
            duel = td.compare(*arguments, bootstrap=FEW)
            row = found.loc[("net", across, "predicted_loss less scaled_weights")]
            assert (row["rise"], row["rise_low"], row["rise_high"]) == (duel.difference, duel.low, duel.high)

    def test_a_regret_is_in_points_or_bits(self, tables):
        costs = networks.regrets(tables, FEW).set_index(["network", "among", "error"])
        part = tables["net"][tables["net"]["ratio"].isin(networks.LEVELS)]
        expected = td.regret(part, "relative_weights", "test_error", "layer", bootstrap=FEW)
        row = costs.loc[("net", "layers", "relative_weights")]
        assert (row["mean"], row["chance"]) == (expected.mean, expected.chance)
        assert costs.loc[("net", "layers", "predicted_loss"), "mean"] == 0
        assert costs.loc[("text", "methods", "scaled_weights"), "column"] == "test_bits_per_byte"

    def test_the_command_writes_all_of_it(self, tmp_path, capsys):
        written(tmp_path / "net", table(ratios=(0.9, 0.95)), name="net")
        assert answer.main(["--studies", str(tmp_path)]) == 0
        assert "answer.md, answer.png, beyond.md, beyond-net.png" in capsys.readouterr().out
        assert answer.main(["--studies", str(tmp_path / "net")]) == 2
        assert "publish one first" in capsys.readouterr().err


class TestBeyond:
    def test_is_tau_across_layers_of_one_method_and_level(self, tables):
        frame = tables["net"]
        rows = beyond.by_level(frame, FEW).set_index(["ratio", "method", "error"])
        part = frame[(frame["ratio"] == 0.99) & (frame["method"] == "tt")]
        tau = td.correlate(part, "relative_features", "test_cross_entropy", "layer", bootstrap=FEW)
        row = rows.loc[(0.99, "tt", "relative_features")]
        assert (row["layers"], row["tau"], row["low"], row["high"]) == (6, tau.mean, tau.low, tau.high)
        assert (row["median"], row["worst"]) == (part["test_error"].median(), part["test_error"].max())
        assert set(rows.index.get_level_values("ratio")) == {0.5, 0.9, 0.95, 0.99}

    def test_broken_is_half_way_to_guessing(self):
        frame = table()
        frame["test_error"] = 0.1
        frame.loc[(frame["ratio"] == 0.99) & frame["layer"].isin(["a", "b"]), "test_error"] = 0.51
        frame.loc[(frame["ratio"] == 0.95) & frame["layer"].isin(["a", "b"]), "test_error"] = 0.49
        rows = beyond.by_level(frame, FEW).groupby("ratio")["broken"].unique()
        assert (list(rows[0.99]), list(rows[0.95])) == ([2], [0])

    @pytest.mark.full  # a quick run has the command that writes them
    def test_writes_a_table_and_a_picture_a_network(self, tables, tmp_path):
        files = beyond.report(tmp_path, tables, FEW)
        assert [file.name for file in files] == ["beyond.md", "beyond-net.png", "beyond-text.png"]
        text = files[0].read_text(encoding="utf-8")
        assert text.count("| 99 % | tt | 6 |") == 2
        assert "median bits per byte" in text

    def test_few_layers_or_low_levels_have_none(self, tmp_path):
        frame = table()
        assert beyond.report(tmp_path, {"low": frame[frame["ratio"] < 0.95]}, FEW) == []
        assert beyond.report(tmp_path, {"few": frame[frame["layer"] < "d"]}, FEW) == []
        assert not list(tmp_path.iterdir())
