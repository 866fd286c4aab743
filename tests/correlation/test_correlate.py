from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdcompress.correlation import Correlation, KendallTau, correlate, kendall_tau
from tdcompress.correlation.tau import tau_alone
from tdcompress.errors import CompressionError
from tests.drawing import cases


def brute_force_s(x, y):
    """Concordant minus discordant pairs, straight from the definition."""
    x, y = np.asarray(x), np.asarray(y)
    return int(np.sum(np.triu(np.sign(x[:, None] - x) * np.sign(y[:, None] - y), k=1)))


def with_discordant(n, *reversed_blocks):
    """0 … n−1 with consecutive blocks reversed: a block of k makes k(k−1)/2 discordant pairs."""
    y, start = np.arange(n), 0
    for size in reversed_blocks:
        y[start : start + size] = y[start : start + size][::-1]
        start += size
    return y


# Few distinct integers make ties; integers that float64 holds exactly keep the monotone maps strict.
pairs = st.lists(st.tuples(st.integers(-6, 6), st.integers(-1000, 1000)), min_size=2, max_size=30)
variants = st.sampled_from(["a", "b"])


def tau_or_nan(x, y, variant):
    try:
        return kendall_tau(x, y, variant).tau
    except CompressionError:
        assert variant == "b"
        assert len(set(x)) == 1 or len(set(y)) == 1
        return math.nan


class TestKendallTau:
    def test_tau_a_equals_brute_force_on_tied_tables(self):
        generator = np.random.default_rng(0)
        for _ in range(1000):
            n, levels = generator.integers(2, 60), generator.integers(1, 40)
            x, y = generator.integers(0, levels, (2, n)) / 7
            assert kendall_tau(x, y).tau == brute_force_s(x, y) / math.comb(n, 2)

    def test_tau_b_and_both_p_values_equal_scipy(self):
        generator = np.random.default_rng(1)
        for _ in range(300):
            n, levels = generator.integers(3, 60), generator.integers(2, 40)
            x, y = generator.integers(0, levels, (2, n))
            if len(set(x)) == 1 or len(set(y)) == 1:
                continue
            expected = scipy.stats.kendalltau(x, y)
            b = kendall_tau(x, y, variant="b")
            assert (b.tau, b.p_value) == (expected.statistic, expected.pvalue)
            assert kendall_tau(x, y, variant="a").p_value == expected.pvalue

    def test_anchor_of_the_paper(self):
        result = kendall_tau(np.arange(72), with_discordant(72, 28, 3, 2))  # 378 + 3 + 1 discordant
        assert result.tau == 1792 / 2556
        assert result.tau == pytest.approx(0.701095, abs=1e-6)
        assert str(result).startswith("τ-a = 0.701 [0.61, 0.77], n = 72, p = ")

    def test_interval_at_the_papers_size(self):
        result = kendall_tau(np.arange(72), with_discordant(72, 33, 7, 2))  # τ = 1456 / 2556
        assert result.tau == pytest.approx(0.57, abs=1e-3)
        assert (result.low, result.high) == pytest.approx((0.45, 0.67), abs=5e-3)

    @pytest.mark.parametrize("n", [1000, 100_000])
    def test_count_is_exact_for_large_n(self, n):
        total = math.comb(n, 2)
        halves = np.arange(n) // 2  # n/2 tied pairs
        assert kendall_tau(np.arange(n), with_discordant(n, 2)).tau == (total - 2) / total
        assert kendall_tau(halves, np.arange(n)).tau == (total - n // 2) / total
        assert kendall_tau(halves, -halves).tau == -(total - n // 2) / total
        assert kendall_tau(halves, with_discordant(n, 1, 2)).tau == (total - n // 2 - 2) / total

    @pytest.mark.parametrize("n", [2, 3, 4])
    def test_few_pairs_say_nothing(self, n):
        result = kendall_tau(range(n), range(n))
        assert (result.low, result.tau, result.high) == (-1, 1, 1)

    @pytest.mark.parametrize("n", [5, 10, 72])
    def test_perfect_order_has_an_interval(self, n):
        up, down = kendall_tau(range(n), range(n)), kendall_tau(range(n), range(0, -n, -1))
        almost = kendall_tau(range(n), with_discordant(n, 2))
        assert -1 < almost.low < almost.tau
        assert up.low == pytest.approx(almost.low)
        assert up.low == pytest.approx(np.tanh(np.arctanh(1 - 2 / math.comb(n, 2)) - 1.96 * math.sqrt(0.437 / (n - 4))))
        assert up.high == 1
        assert down.low == -1
        assert down.high == pytest.approx(-almost.low)

    def test_constant_input(self):
        result = kendall_tau([3, 3, 3, 3, 3, 3], range(6))
        assert (result.tau, result.p_value) == (0, 1)
        assert result.low == -result.high
        with pytest.raises(CompressionError, match=r"τ-b is undefined: all values of x are equal"):
            kendall_tau([3, 3, 3], [1, 2, 3], variant="b")
        with pytest.raises(CompressionError, match=r"all values of x and of y are equal"):
            kendall_tau([3, 3], [1, 1], variant="b")

    @pytest.mark.parametrize(
        "convert",
        [
            list,
            tuple,
            np.array,
            pd.Series,
            torch.tensor,
            lambda v: torch.tensor(v, dtype=torch.bfloat16),
            lambda v: torch.tensor(v, dtype=torch.float32, requires_grad=True),
            lambda v: pd.Series(v, index=v[::-1]),  # paired by position, not by index
        ],
    )
    def test_takes_any_vector(self, convert):
        assert kendall_tau(convert([1, 2, 3, 4]), [1, 3, 2, 4]).tau == 4 / 6

    def test_huge_and_tiny_values(self):
        assert kendall_tau([-1.7e308, 5e-324, 0, 1.7e308], [1, 3, 2, 4]).tau == 1

    @cases(500)
    @given(pairs, variants)
    def test_alone_it_is_the_same_bits(self, points, variant):
        x, y = (np.array(values, dtype=float) for values in zip(*points, strict=True))
        expected = tau_or_nan(x, y, variant)
        assert math.isnan(expected) or tau_alone(x, y, variant).hex() == expected.hex()

    def test_alone_it_takes_many_and_huge_values_too(self):
        many = np.arange(150.0)
        assert tau_alone(many, many[::-1]) == -1
        assert tau_alone(np.array([-1.7e308, 5e-324, 0, 1.7e308]), np.array([1.0, 3, 2, 4])) == 1
        with pytest.raises(CompressionError, match="at least 2 values in x and in y, not 1"):
            tau_alone(many[:1], many[:1])

    @cases(500)
    @given(pairs, variants)
    def test_symmetric(self, points, variant):
        x, y = zip(*points, strict=True)
        assert tau_or_nan(x, y, variant) == pytest.approx(tau_or_nan(y, x, variant), rel=1e-12, nan_ok=True)

    @cases(500)
    @given(pairs, variants)
    def test_antisymmetric(self, points, variant):
        x, y = zip(*points, strict=True)
        tau, negated = tau_or_nan(x, y, variant), tau_or_nan(x, [-value for value in y], variant)
        np.testing.assert_array_equal(tau, -negated)

    @cases(500)
    @given(pairs, variants)
    @pytest.mark.parametrize(
        "increasing",
        [lambda v: 3 * v + 2, lambda v: v**3, math.atan, lambda v: math.exp(v / 2)],
        ids=["affine", "cube", "arctan", "exp"],
    )
    def test_invariant_to_increasing_maps(self, increasing, points, variant):
        x, y = zip(*points, strict=True)
        mapped = [increasing(value) for value in x]
        np.testing.assert_array_equal(tau_or_nan(mapped, y, variant), tau_or_nan(x, y, variant))

    @cases(500)
    @given(pairs, variants)
    def test_bounds(self, points, variant):
        x, y = zip(*points, strict=True)
        if math.isnan(tau_or_nan(x, y, variant)):
            return
        result = kendall_tau(x, y, variant)
        assert -1 <= result.low <= result.tau <= result.high <= 1
        assert result.low < result.high
        assert 0 <= result.p_value <= 1
        assert result.n == len(points)

    @cases(500)
    @given(pairs)
    def test_both_variants_come_from_the_same_count(self, points):
        x, y = zip(*points, strict=True)
        a, b = tau_or_nan(x, y, "a"), tau_or_nan(x, y, "b")
        assert a * math.comb(len(x), 2) == pytest.approx(brute_force_s(x, y), abs=1e-9)
        assert math.isnan(b) or (np.sign(a) == np.sign(b) and abs(a) <= abs(b) + 1e-12)

    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            ([1, 2, 3], [1, 2], "x has 3 values and y has 2"),
            ([1], [1], "at least 2 values in x and in y, not 1"),
            ([], [], "at least 2"),
            ([[1, 2], [3, 4]], [1, 2], r"x must be one-dimensional; its shape is \(2, 2\)"),
            ([1, 2], 3, r"y must be one-dimensional; its shape is \(\)"),
            ([1, 2, math.nan], [1, 2, 3], "x: 1 of 3 values are NaN or infinite, the first at index 2"),
            ([1, 2], [-math.inf, math.inf], "y: 2 of 2 values"),
            (["one", "two"], [1, 2], "x must be a vector of numbers: could not convert"),
            ([1, 2], [[1], [2, 3]], "y must be a vector of numbers"),
            ([1j, 2], [1, 2], "x must be a vector of numbers"),
            (
                np.broadcast_to(0.0, 30_000_001),
                np.broadcast_to(0.0, 30_000_001),
                "exact up to n = 30,000,000",
            ),
        ],
    )
    def test_refuses(self, x, y, message):
        with pytest.raises(CompressionError, match=message):
            kendall_tau(x, y)

    def test_refuses_no_fewer_than_it_says(self, monkeypatch):
        monkeypatch.setattr("tdcompress.correlation.tau._MAX_N", 5)
        assert kendall_tau(range(5), range(5)).n == 5
        with pytest.raises(CompressionError, match="exact up to n = 5, not for 6: draw a sample"):
            kendall_tau(range(6), range(6))

    def test_refuses_other_variants(self):
        with pytest.raises(CompressionError, match="variant must be 'a' or 'b', not 'c'"):
            kendall_tau([1, 2], [1, 2], variant="c")  # type: ignore[arg-type]

    def test_equal_results_are_one(self):
        assert len({kendall_tau([1, 2, 3], [1, 3, 2]) for _ in range(2)}) == 1

    def test_str(self):
        assert str(KendallTau(0.7011, 0.6, 0.777, 1.24e-16, 72)) == "τ-a = 0.701 [0.60, 0.78], n = 72, p = 1.2e-16"
        assert str(KendallTau(-0.5, -1, 0, 0.25, 9, "b")) == "τ-b = -0.500 [-1.00, 0.00], n = 9, p = 0.25"


def grid(runs=3, seed=0):
    """A complete study of 4 layers × 3 methods × 2 ratios with ties in both values, in shuffled order."""
    generator = np.random.default_rng(seed)
    layers, methods, ratios = ["conv1", "conv2", "conv3", "conv4"], ["cp", "tucker", "tt"], [0.5, 0.9]
    frame = pd.DataFrame(
        itertools.product(range(runs), layers, methods, ratios), columns=["run", "layer", "method", "ratio"]
    )
    frame["error"] = generator.integers(0, 12, len(frame)) / 12
    frame["loss"] = frame["error"] + generator.integers(-4, 5, len(frame)) / 6
    return frame.sample(frac=1, random_state=seed)


def by_groupby(frame, across, variant):
    """{run: τ}, by pandas' groupby and the definitions of τ."""
    held = [name for name in ("layer", "method", "ratio") if name not in across]
    result = {}
    for run in frame["run"].unique():
        own = frame[frame["run"] == run]
        parts = [part for _, part in own.groupby(held)] if held else [own]
        result[run] = np.mean(
            [
                scipy.stats.kendalltau(part["error"], part["loss"]).statistic
                if variant == "b"
                else brute_force_s(part["error"], part["loss"]) / math.comb(len(part), 2)
                for part in parts
            ]
        )
    return result


def hand_made():
    """Two runs of three layers at two ratios; every τ below is counted by hand."""
    return {
        "run": [0] * 6 + [1] * 6,
        "layer": ["conv1", "conv2", "conv3"] * 4,
        "method": ["cp"] * 12,
        "ratio": ([0.5] * 3 + [0.9] * 3) * 2,
        "error": [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6],
        "loss": [1, 2, 3, 6, 5, 4, 1, 3, 2, 4, 4, 5],
    }


class TestCorrelate:
    def test_hand_computed(self):
        # run 0: τ = 1 at 0.5 and −1 at 0.9; run 1: (2 − 1)/3 at 0.5 and (2 − 0)/3 with one tie at 0.9
        result = correlate(hand_made(), "error", "loss", across="layer")
        assert result.per_run == {0: 0, 1: pytest.approx(0.5)}
        assert (result.mean, result.std) == pytest.approx((0.25, 0.25))
        assert (result.groups, result.n, result.across) == (2, 3, ("layer",))
        assert str(result) == "τ-a = 0.250 ± 0.250 over 2 runs, across layer, 2 groups of n = 3 per run"

    def test_the_whole_table_as_one_run(self):
        table = {name: column[:6] for name, column in hand_made().items() if name != "run"}
        result = correlate(table, "error", "loss", run=None)
        assert result.per_run == {None: 9 / 15}  # 3 discordant pairs of 15
        assert (result.std, result.groups, result.n) == (0, 1, 6)
        assert str(result) == "τ-a = 0.600 in one run, across layer × method × ratio, n = 6"

    @pytest.mark.parametrize("variant", ["a", "b"])
    @pytest.mark.parametrize(
        ("across", "groups"),
        [
            (("layer",), 6),
            (("layer", "method"), 2),
            (("layer", "ratio"), 3),
            (("method", "ratio"), 4),
            (("layer", "method", "ratio"), 1),
        ],
    )
    def test_equals_groupby(self, across, groups, variant):
        frame = grid()
        result = correlate(frame, "error", "loss", across=across, variant=variant)
        expected = by_groupby(frame, across, variant)
        assert result.per_run == pytest.approx(expected)
        assert list(result.per_run) == list(expected)
        assert result.mean == pytest.approx(np.mean(list(expected.values())))
        assert result.std == pytest.approx(np.std(list(expected.values())))
        assert result.groups == result.groups_max == groups
        assert result.n == result.n_max == len(frame) / 3 / groups

    def test_one_group_equals_kendall_tau(self):
        frame = grid(runs=1)
        assert correlate(frame, "error", "loss").mean == kendall_tau(frame["error"], frame["loss"]).tau

    def test_across_is_a_set_of_names(self):
        frame = grid()
        result = correlate(frame, "error", "loss", across=["ratio", "layer", "ratio"])
        assert result == correlate(frame, "error", "loss", across=("layer", "ratio"))
        assert result.across == ("layer", "ratio")

    def test_any_table_gives_the_same(self, tmp_path):
        frame = grid()
        frame.to_csv(tmp_path / "trials.csv", index=False)
        tables = [
            frame,
            frame.set_index(pd.Index([7] * len(frame))),
            frame.astype({"layer": "category", "ratio": "category", "error": "float32"}),
            frame.to_dict("list"),
            frame.to_dict("records"),
            {name: frame[name].to_numpy() for name in frame},
            tmp_path / "trials.csv",
            str(tmp_path / "trials.csv"),
        ]
        results = [correlate(table, "error", "loss", across=("layer",)) for table in tables]
        assert all(result == results[0] for result in results)

    def test_the_frame_is_not_modified(self):
        frame = grid()
        before = frame.copy(deep=True)
        correlate(frame, "error", "loss", across="layer")
        pd.testing.assert_frame_equal(frame, before)

    def test_runs_may_be_named_by_any_column(self):
        frame = grid()
        renamed = frame.rename(columns={"run": "seed"})
        assert correlate(renamed, "error", "loss", run="seed") == correlate(frame, "error", "loss")
        per_layer = correlate(frame[frame["run"] == 0], "error", "loss", across=("method", "ratio"), run="layer")
        assert sorted(per_layer.per_run) == ["conv1", "conv2", "conv3", "conv4"]

    def test_the_error_may_be_a_key(self):
        frame = grid()
        frame["ratio_copy"] = frame["ratio"]
        expected = correlate(frame, "ratio_copy", "loss")
        assert correlate(frame, "ratio", "loss") == expected

    def test_an_incomplete_grid_reports_its_sizes(self):
        frame = grid()
        frame = frame[~((frame["run"] == 1) & (frame["layer"] == "conv1") & (frame["method"] == "cp"))]
        frame = frame[~((frame["run"] == 2) & (frame["method"] == "tt"))]
        result = correlate(frame, "error", "loss", across="layer")
        assert (result.groups, result.groups_max, result.n, result.n_max) == (4, 6, 3, 4)
        assert str(result).endswith("across layer, 4 to 6 groups of n = 3 to 4 per run")

    def test_str_is_one_line(self):
        result = Correlation(-0.5, 0.25, {0: -0.75, 1: -0.25}, 1, 5, ("layer", "ratio"), "b", 1, 6)
        assert str(result) == "τ-b = -0.500 ± 0.250 over 2 runs, across layer × ratio, n = 5 to 6"


class TestCorrelateRefuses:
    def refused(self, message, table=None, error="error", performance="loss", **options):
        with pytest.raises(CompressionError, match=message):
            correlate(grid() if table is None else table, error, performance, **options)

    def test_missing_columns(self):
        self.refused(r"one column named 'eror' \(meant 'error'\?\); it has run, layer, method", error="eror")
        self.refused("one column named 'q', 'z'; it has", error="q", performance="z")
        self.refused(r"named 'method'; it has run, layer, ratio, error, loss$", grid().drop(columns="method"))
        self.refused("named 'run'; it has .*; with run=None the table is one run", grid().drop(columns="run"))

    def test_repeated_columns(self):
        frame = grid()
        self.refused("exactly one column named 'error'", pd.concat([frame, frame[["error"]]], axis=1))

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
    @pytest.mark.parametrize("column", ["error", "loss"])
    def test_values_that_are_not_finite(self, column, bad):
        rows = grid().sort_values(["run", "layer", "method", "ratio"]).to_dict("records")
        rows[1][column] = rows[5][column] = bad
        trial = r"run=0, layer='conv1', method='cp', ratio=0\.9"
        self.refused(f"2 of 72 rows have NaN or infinity in the column '{column}', first the trial {trial};", rows)

    def test_values_that_are_not_numbers(self):
        frame = grid().astype({"error": object})
        frame.iloc[3, frame.columns.get_loc("error")] = "failed"
        self.refused("column 'error' must hold numbers: could not convert string to float: 'failed'", frame)

    @pytest.mark.parametrize("column", ["run", "layer", "method", "ratio"])
    def test_keys_without_a_value(self, column):
        frame = grid().astype({column: object})
        frame.iloc[4, frame.columns.get_loc(column)] = None
        self.refused("1 of 72 rows lack one of run, layer, method, ratio, first row 4: run=", frame)

    def test_repeated_trials(self):
        frame = grid()
        twice = pd.concat([frame, frame.iloc[[7]]])
        self.refused(r"1 of 73 rows repeat a trial, first row 72: run=\d, layer='conv\d'", twice)
        self.refused("name the column that tells them apart as run=", frame, run=None)

    def test_groups_of_one_row(self):
        frame = grid()
        only = frame[(frame["method"] != "cp") | (frame["layer"] == "conv1") | (frame["ratio"] == 0.5)]
        group = r"group run=\d, method='cp', ratio=0\.9 of n = 1, "
        message = group + r".*at least 2.*vary more than across=\('layer',\)"
        self.refused(message, only, across="layer")
        one = {name: column[:1] for name, column in hand_made().items()}
        self.refused("group the whole table of n = 1,", one, run=None)

    def test_groups_where_tau_b_is_undefined(self):
        frame = grid()
        frame.loc[(frame["run"] == 2) & (frame["method"] == "tt") & (frame["ratio"] == 0.5), "loss"] = 1.0
        group = r"group run=2, method='tt', ratio=0\.5 of n = 4, x='error', y='loss'"
        self.refused(f"{group}: τ-b is undefined: all values of y", frame, across="layer", variant="b")
        assert correlate(frame, "error", "loss", across="layer").groups == 6

    @pytest.mark.parametrize("across", ["", (), [], "layers", ("layer", "layers"), ("run",)])
    def test_across(self, across):
        message = "it takes one or more of layer, method, ratio"
        self.refused(message, across=across)

    def test_across_says_what_was_meant(self):
        self.refused(r"across has 'layers' \(meant 'layer'\?\)", across=("layers", "ratio"))
        self.refused("across is empty", across=())
        self.refused("run='layer' is fixed within a run", across=("layer", "ratio"), run="layer")

    def test_variant(self):
        self.refused("^variant must be 'a' or 'b', not 'B'", variant="B")

    def test_empty_and_unreadable_tables(self, tmp_path):
        tables: list[Any] = [[], {}, pd.DataFrame(), grid().iloc[:0], {"run": []}]
        for empty in tables:
            self.refused("the table is empty", empty)
        (tmp_path / "empty.csv").write_text("")
        self.refused("pandas cannot read the table: No columns", tmp_path / "empty.csv")
        self.refused("pandas cannot read the table: All arrays", {"run": [1, 2], "layer": ["a"]})
        self.refused("pandas cannot read the table", 5)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            correlate(tmp_path / "no.csv", "error", "loss")

    def test_without_pandas(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match=r"pip install tdcompress\[study\]"):
            correlate(hand_made(), "error", "loss")
