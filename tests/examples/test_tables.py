from itertools import product

import numpy as np
import pandas as pd
import pytest

import tdcompress as td
from examples.paper.reference import Published
from examples.paper.runner import ERRORS
from examples.paper.tables import as_markdown, as_text, in_words, taus
from tdcompress.errors import CompressionError

GARIPOV = Published("GaripovNet", "F-MNIST")


def synthetic(layers=("a", "b", "c"), methods=("cp", "tt"), ratios=(0.1, 0.5, 0.9), runs=3, fine_tuned=True):
    """A table as a study writes it, of random numbers; relative weights order the test errors perfectly."""
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(product(layers, methods, ratios, range(runs)), columns=["layer", "method", "ratio", "run"])
    for column in ERRORS:
        frame[column] = generator.random(len(frame))
    frame["test_error"] = np.sqrt(frame["relative_weights"]) / 2
    frame["test_cross_entropy"] = generator.random(len(frame))
    if fine_tuned:
        frame["finetuned_test_error"] = generator.integers(3, size=len(frame)) / 100
        frame["finetuned_test_cross_entropy"] = generator.random(len(frame))
    return frame


def find(rows, name, error, measure="error", fine_tuned=False):
    (row,) = (
        row
        for row in rows
        if (row.view.name, row.error, row.measure, row.fine_tuned) == (name, error, measure, fine_tuned)
    )
    return row


class TestTaus:
    frame = synthetic()
    rows = taus(frame, GARIPOV)

    @pytest.mark.parametrize("error", ERRORS)
    @pytest.mark.parametrize("measure", ["error", "cross_entropy"])
    @pytest.mark.parametrize("fine_tuned", [False, True])
    def test_is_what_correlate_says(self, error, measure, fine_tuned):
        column = f"{'finetuned_' if fine_tuned else ''}test_{measure}"
        high = self.frame[self.frame["ratio"] >= 0.5]
        level = self.frame[self.frame["ratio"] == 0.1]
        expected = {
            "all": td.correlate(high, error, column),
            "layers": td.correlate(high, error, column, across="layer"),
            "methods": td.correlate(high, error, column, across="method"),
            "10%": td.correlate(level, error, column, across=("layer", "method")),
        }
        for name, correlation in expected.items():
            assert find(self.rows, name, error, measure, fine_tuned).found == correlation

    def test_by_hand(self):
        row = find(self.rows, "all", "absolute_features", "cross_entropy")
        for run, tau in row.found.per_run.items():
            part = self.frame[(self.frame["run"] == run) & (self.frame["ratio"] >= 0.5)]
            x, y = part["absolute_features"].to_numpy(), part["test_cross_entropy"].to_numpy()
            signs = np.sign(np.subtract.outer(x, x)) * np.sign(np.subtract.outer(y, y))
            assert tau == pytest.approx(signs.sum() / (len(x) * (len(x) - 1)))
        assert row.found.mean == pytest.approx(np.mean(list(row.found.per_run.values())))
        assert row.found.std == pytest.approx(np.std(list(row.found.per_run.values())))

    def test_the_paper_stands_beside(self):
        assert find(self.rows, "all", "relative_weights").paper == (0.7752, 0.0207)
        assert find(self.rows, "all", "relative_weights", fine_tuned=True).paper == (0.6499, 0.0248)
        assert find(self.rows, "layers", "relative_weights").paper == (0.58, 0.0361)
        assert find(self.rows, "90%", "relative_weights").paper == (0.8171, 0.0194)

    def test_a_level_that_the_paper_has_not(self):
        rows = taus(synthetic(ratios=(0.6,)), GARIPOV)
        assert {row.view.name for row in rows} == {"60%"}
        assert {row.paper for row in rows} == {None}

    @pytest.mark.parametrize(
        ("options", "names"),
        [
            ({"layers": ("a",)}, {"all", "methods", "10%", "50%", "90%"}),
            ({"methods": ("cp",)}, {"all", "layers", "10%", "50%", "90%"}),
            ({"layers": ("a",), "methods": ("cp",)}, {"all"}),
            ({"layers": ("a",), "methods": ("cp",), "ratios": (0.5,)}, set()),
        ],
    )
    def test_what_has_nothing_to_compare_is_left_out(self, options, names):
        assert {row.view.name for row in taus(synthetic(**options), GARIPOV)} == names

    def test_without_fine_tuning(self):
        assert {row.fine_tuned for row in taus(synthetic(fine_tuned=False), GARIPOV)} == {False}


class TestText:
    def test_lines_up(self):
        before, after = as_text(taus(synthetic(), GARIPOV), GARIPOV).split("\n\nKendall")
        lines = before.splitlines()[2:]
        assert len(lines) == 2 + 6 * len(ERRORS)
        assert len({line.index(" ±") for line in lines[2:]}) == 1
        assert "before fine-tuning" in before
        assert "after fine-tuning" in after

    def test_markdown_is_a_table(self):
        lines = as_markdown(taus(synthetic(fine_tuned=False), GARIPOV), GARIPOV).splitlines()
        cells = [line for line in lines if line.startswith("|")]
        assert {line.count("|") for line in cells} == {6}
        assert any("all, 50–90 %" in line and "0.698 ± 0.016" in line for line in cells)

    def test_another_network_is_called_the_nearest(self):
        nearest = Published("GaripovNet", "F-MNIST", same_network=False)
        frame = synthetic()
        assert "the paper's GaripovNet, F-MNIST" in as_text(taus(frame, nearest), nearest)
        assert "In the paper's nearest network (GaripovNet, F-MNIST)" in in_words(frame, nearest)


class TestWords:
    def test_follow_the_numbers(self):
        before, after = in_words(synthetic(), GARIPOV).splitlines()
        assert before.startswith("Before fine-tuning, over all layers, methods and levels of 50–90 %")
        assert "best is relative weights: τ = 1.00 ± 0.00 over 3 runs" in before
        assert "the right order of about 100 in 100 pairs" in before
        assert "In the paper it is relative weights with τ = 0.78: the two agree." in before
        assert after.startswith("After fine-tuning")

    def test_say_when_the_paper_differs(self):
        frame = synthetic().rename(columns={"relative_weights": "scaled_weights", "scaled_weights": "relative_weights"})
        words = in_words(frame, GARIPOV).splitlines()[0]
        assert "best is scaled weights" in words
        assert "the two differ" in words
        assert "Relative weights has τ = " in words

    def test_say_what_is_not_settled(self):
        frame = synthetic()
        frame["test_error"] = frame["relative_weights"] + frame["scaled_weights"] / 3
        frame["absolute_weights"] = frame["relative_weights"].round(1)  # ties cost it a few pairs
        words = in_words(frame, GARIPOV).splitlines()[0]
        assert "which also holds absolute weights: the order among these is not settled" in words

    def test_say_when_the_difference_to_the_paper_is_within_the_interval(self):
        frame = synthetic()
        frame["scaled_weights"] = frame["relative_weights"]
        frame["relative_weights"] = frame["relative_weights"].round(1)  # ties cost it a few pairs
        frame["test_error"] = frame["scaled_weights"] + frame["absolute_weights"] / 3
        words = in_words(frame, GARIPOV).splitlines()[0]
        assert "best is scaled weights" in words
        assert "cannot tell, so it does not contradict" in words

    def test_say_when_two_are_alike(self):
        frame = synthetic()
        frame["absolute_weights"] = frame["relative_weights"] * 2
        words = in_words(frame, GARIPOV).splitlines()[0]
        assert "best, and equally well, are absolute weights and relative weights: τ = 1.00" in words
        assert "the two agree" in words

    def test_one_run_has_no_deviation(self):
        frame = synthetic(runs=1)
        rows = taus(frame, GARIPOV)
        assert "τ = 1.00 in one run, which" in in_words(frame, GARIPOV)
        assert "before fine-tuning, one run" in as_text(rows, GARIPOV)
        assert "± 0.000" not in as_text(rows, GARIPOV)

    def test_nothing_to_compare(self):
        assert in_words(synthetic(ratios=(0.1,)), GARIPOV) == ""


class TestPublished:
    def test_ranks(self):
        assert GARIPOV.rank("conv6", "cp", 0.25) == (422,)
        assert GARIPOV.rank("conv3", "tucker", 0.9) == (26, 13)
        assert GARIPOV.rank("conv2", "tt", 0.75) == (64, 11, 33)

    @pytest.mark.parametrize(
        ("layer", "method", "ratio"), [("conv1", "cp", 0.9), ("conv2", "my", 0.9), ("conv2", "cp", 0.8)]
    )
    def test_unknown_ranks_are_refused(self, layer, method, ratio):
        with pytest.raises(CompressionError, match="the paper printed no rank of GaripovNet"):
            GARIPOV.rank(layer, method, ratio)
