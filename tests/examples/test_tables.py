from itertools import product

import numpy as np
import pandas as pd
import pytest

import tdcompress as td
from examples.paper.reference import Published
from examples.paper.rises import between_states
from examples.paper.tables import as_markdown, as_text, differences, in_words, printed, rows_of
from tdcompress.errors import CompressionError
from tdcompress.metrics import default_metrics

GARIPOV = Published("GaripovNet", "F-MNIST")
ERRORS = tuple(default_metrics(with_data=True))


def synthetic(
    layers=("a", "b", "c"), methods=("cp", "tt"), ratios=(0.1, 0.5, 0.9), runs=3, fine_tuned=True, calibrated=False
):
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
    if calibrated:
        frame["calibrated_test_error"] = frame["relative_weights"] / 3
        frame["calibrated_test_cross_entropy"] = generator.random(len(frame))
    return frame


def find(rows, name, error, measure="error", prefix=""):
    wanted = (name, error, f"{prefix}test_{measure}")
    (row,) = (row for row in rows if (row.grouping.name, row.error, row.performance) == wanted)
    return row


class TestTaus:
    frame = synthetic(calibrated=True)
    rows = rows_of(frame)

    @pytest.mark.parametrize("error", ERRORS)
    @pytest.mark.parametrize("measure", ["error", "cross_entropy"])
    @pytest.mark.parametrize("prefix", ["", "calibrated_", "finetuned_"])
    def test_is_what_correlate_says(self, error, measure, prefix):
        column = f"{prefix}test_{measure}"
        high = self.frame[self.frame["ratio"] >= 0.5]
        level = self.frame[self.frame["ratio"] == 0.1]
        expected = {
            "all": td.correlate(high, error, column),
            "layers": td.correlate(high, error, column, across="layer"),
            "methods": td.correlate(high, error, column, across="method"),
            "10%": td.correlate(level, error, column, across=("layer", "method")),
        }
        for name, correlation in expected.items():
            assert find(self.rows, name, error, measure, prefix).correlation == correlation

    def test_by_hand(self):
        row = find(self.rows, "all", "absolute_features", "cross_entropy")
        for run, tau in row.correlation.per_run.items():
            part = self.frame[(self.frame["run"] == run) & (self.frame["ratio"] >= 0.5)]
            x, y = part["absolute_features"].to_numpy(), part["test_cross_entropy"].to_numpy()
            signs = np.sign(np.subtract.outer(x, x)) * np.sign(np.subtract.outer(y, y))
            assert tau == pytest.approx(signs.sum() / (len(x) * (len(x) - 1)))
        assert row.correlation.mean == pytest.approx(np.mean(list(row.correlation.per_run.values())))
        assert row.correlation.std == pytest.approx(np.std(list(row.correlation.per_run.values())))

    def test_the_paper_stands_beside(self):
        assert printed(find(self.rows, "all", "relative_weights"), GARIPOV) == (0.7752, 0.0207)
        assert printed(find(self.rows, "all", "relative_weights", prefix="finetuned_"), GARIPOV) == (0.6499, 0.0248)
        assert printed(find(self.rows, "all", "relative_weights", prefix="calibrated_"), GARIPOV) is None
        assert printed(find(self.rows, "layers", "relative_weights"), GARIPOV) == (0.58, 0.0361)
        assert printed(find(self.rows, "90%", "relative_weights"), GARIPOV) == (0.8171, 0.0194)

    def test_a_level_that_the_paper_has_not(self):
        rows = rows_of(synthetic(ratios=(0.6,)))
        assert {row.grouping.name for row in rows} == {"all", "layers", "methods", "60%"}
        assert {printed(row, GARIPOV) for row in rows} == {None}

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
        assert {row.grouping.name for row in rows_of(synthetic(**options))} == names

    def test_without_fine_tuning(self):
        assert not any("finetuned" in row.performance for row in rows_of(synthetic(fine_tuned=False)))


class TestText:
    def test_lines_up(self):
        before, after = as_text(rows_of(synthetic()), GARIPOV).split("\n\nKendall")
        lines = before.splitlines()[2:]
        assert len(lines) == 2 + 6 * len(ERRORS)
        assert len({line.index(" ±") for line in lines[2:]}) == 1
        assert "before fine-tuning" in before
        assert "after fine-tuning" in after

    def test_calibration_has_a_table_of_its_own(self):
        titles = [line for line in as_text(rows_of(synthetic(calibrated=True)), GARIPOV).splitlines() if "τ-a" in line]
        assert [title.split("performance ")[1].split(",")[0] for title in titles] == [
            "before fine-tuning",
            "after calibration",
            "after fine-tuning",
        ]

    def test_markdown_is_a_table(self):
        lines = as_markdown(rows_of(synthetic(fine_tuned=False)), GARIPOV).splitlines()
        cells = [line for line in lines if line.startswith("|")]
        assert {line.count("|") for line in cells} == {6}
        assert any("all, 50–90 %" in line and "0.698 ± 0.016" in line for line in cells)

    def test_another_network_is_called_the_nearest(self):
        nearest = Published("GaripovNet", "F-MNIST", same_network=False)
        frame = synthetic()
        assert "the paper's GaripovNet, F-MNIST" in as_text(rows_of(frame), nearest)
        assert "In the paper's nearest network (GaripovNet, F-MNIST)" in in_words(frame, rows_of(frame), nearest)


class TestWords:
    def test_follow_the_numbers(self):
        before, after = in_words(synthetic(), rows_of(synthetic()), GARIPOV).splitlines()
        assert before.startswith("Before fine-tuning, over all layers, methods and levels of 50–90 %")
        assert "best is relative weights: τ = 1.00 ± 0.00 over 3 runs" in before
        assert "the right order of about 100 in 100 pairs" in before
        assert "In the paper it is relative weights with τ = 0.78: the two agree." in before
        assert after.startswith("After fine-tuning")

    def test_say_when_the_paper_differs(self):
        frame = synthetic().rename(columns={"relative_weights": "scaled_weights", "scaled_weights": "relative_weights"})
        words = in_words(frame, rows_of(frame), GARIPOV).splitlines()[0]
        assert "best is scaled weights" in words
        assert "the two differ" in words
        assert "Relative weights has τ = " in words

    def test_say_what_is_not_settled(self):
        frame = synthetic()
        frame["test_error"] = frame["relative_weights"] + frame["scaled_weights"] / 3
        frame["absolute_weights"] = frame["relative_weights"].round(1)  # ties cost it a few pairs
        words = in_words(frame, rows_of(frame), GARIPOV).splitlines()[0]
        assert "lead over absolute weights is not settled (paired bootstrap, 95 %)" in words

    def test_say_when_the_difference_to_the_paper_is_within_the_interval(self):
        frame = synthetic()
        frame["scaled_weights"] = frame["relative_weights"]
        frame["relative_weights"] = frame["relative_weights"].round(1)  # ties cost it a few pairs
        frame["test_error"] = frame["scaled_weights"] + frame["absolute_weights"] / 3
        words = in_words(frame, rows_of(frame), GARIPOV).splitlines()[0]
        assert "best is scaled weights" in words
        assert "cannot tell, so it does not contradict" in words

    def test_say_when_two_are_alike(self):
        frame = synthetic()
        frame["absolute_weights"] = frame["relative_weights"] * 2
        words = in_words(frame, rows_of(frame), GARIPOV).splitlines()[0]
        assert "best, and equally well, are absolute weights and relative weights: τ = 1.00" in words
        assert "the two agree" in words

    def test_one_run_has_no_deviation(self):
        frame = synthetic(runs=1)
        rows = rows_of(frame)
        assert "τ = 1.00 in one run, which" in in_words(frame, rows_of(frame), GARIPOV)
        assert "before fine-tuning, one run" in as_text(rows, GARIPOV)
        assert "± 0.000" not in as_text(rows, GARIPOV)

    def test_nothing_to_compare(self):
        assert in_words(synthetic(ratios=(0.1,)), rows_of(synthetic(ratios=(0.1,))), GARIPOV) == ""


class TestBetweenStates:
    def test_are_taus_with_intervals_and_the_paired_rise(self):
        frame = synthetic(fine_tuned=False, calibrated=True)
        frame["test_error"] = frame["relative_weights"] + frame["scaled_weights"]
        lines = between_states(frame).splitlines()
        assert "classification error, and its rise from before fine-tuning to after calibration" in lines[0]
        assert len([line for line in lines if line.startswith("|")]) == 2 * (2 + 3 * len(ERRORS))
        row = next(line for line in lines if line.startswith("| all, 50–90 % | relative weights |"))
        high = frame[frame["ratio"] >= 0.5]
        before = td.correlate(high, "relative_weights", "test_error", bootstrap=td.Bootstrap("trials"))
        rise = td.compare(
            high, "calibrated_test_error", "test_error", "relative_weights", bootstrap=td.Bootstrap("layers")
        )
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[2] == f"{before.mean:.2f} [{before.low:.2f}, {before.high:.2f}]"
        assert cells[3].startswith("1.00 [1.00, 1.00]")
        assert cells[4] == f"{1 - before.mean:+.2f}"
        assert cells[6] == f"{rise.low:+.2f} .. {rise.high:+.2f}"

    def test_one_state_has_none(self):
        assert between_states(synthetic(fine_tuned=False)) == ""

    def test_one_layer_has_no_interval_over_layers(self):
        assert "over layers" not in between_states(synthetic(layers=("a",)))


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


class TestDifferences:
    def test_are_ours_less_the_paper_s_with_intervals(self):
        frame = synthetic()
        lines = differences(frame, rows_of(frame), GARIPOV).splitlines()
        assert len(lines) == 2 + 2 * 3 * len(ERRORS)
        row = next(line for line in lines if "| before | all, 50–90 % | relative weights |" in line)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        ours = td.correlate(
            frame[frame["ratio"] >= 0.5], "relative_weights", "test_error", bootstrap=td.Bootstrap("trials")
        )
        assert cells[3:6] == ["0.775", f"{ours.mean:.3f}", f"{ours.mean - 0.7752:+.3f}"]
        assert ours.low is not None
        assert ours.high is not None
        assert cells[6] == f"{ours.low - 0.7752:+.2f} .. {ours.high - 0.7752:+.2f}"

    def test_one_layer_has_no_interval_over_layers(self):
        lines = differences(synthetic(layers=("a",)), rows_of(synthetic(layers=("a",))), GARIPOV).splitlines()
        assert all(line.endswith("|  |") for line in lines[2:])
