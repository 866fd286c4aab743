import sqlite3
from functools import partial

import pandas as pd
import pytest
import torch

import tdcompress as td
from tdcompress.correlation import correlate
from tdcompress.errors import CompressionError
from tdcompress.study import read
from tdcompress.study.groupings import performances_of, taus
from tests.study.functions import evaluate, finetune, network, study


def numbers(frame):
    """The table without how long it took."""
    return frame[[name for name in frame if "seconds" not in name]]


def further(model, seed):
    """Two steps instead of one."""
    return finetune(finetune(model, seed), seed)


def raising(model, seed):
    raise ZeroDivisionError(f"not with {seed}")


BOTH = {"one-step": finetune, "two steps": further}
SMALL = {"methods": ["tucker", "tt"], "layers": ["0", "3"], "ratios": (0.5,), "runs": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("strategies") / "study.sqlite"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    frame = study(**SMALL, finetune=BOTH).run(path, progress=False)
    torch.set_num_threads(threads)
    return path, frame


class TestTable:
    def test_a_row_has_every_strategy(self, finished):
        _, frame = finished
        assert len(frame) == 2 * 2 * 2
        assert not frame.isna().any().any()
        assert {"norm", "finetuned[one-step]_norm", "finetuned[two steps]_norm", "finetune[one-step]_seconds"} < set(
            frame
        )

    def test_each_gets_the_model_as_it_was_decomposed(self, finished):
        for row in finished[1].to_dict("records"):
            small = partial(td.decompose, network(), row["layer"], row["method"], row["ratio"])
            for name, strategy in BOTH.items():
                tuned = strategy(small(), row["run"])
                with torch.no_grad():
                    assert row[f"finetuned[{name}]_norm"] == pytest.approx(evaluate(tuned)["norm"], rel=1e-4)

    def test_a_single_function_gives_the_same_under_its_own_name(self, finished, store):
        alone = study(**SMALL, finetune=finetune).run(store, progress=False)
        there = finished[1].rename(columns=lambda name: name.replace("[one-step]", ""))
        pd.testing.assert_frame_equal(numbers(alone), numbers(there)[list(numbers(alone))])

    def test_all_that_was_ever_measured_is_read_alike(self, finished):
        path, frame = finished
        pd.testing.assert_frame_equal(read(path), frame)

    def test_seconds_are_those_of_all(self, finished):
        _, frame = finished
        parts = frame[["finetune[one-step]_seconds", "finetune[two steps]_seconds"]].sum(axis=1)
        assert (frame["seconds"] > parts).all()

    def test_a_performance_may_have_any_other_name(self, store):
        frame = study(**SMALL, finetune=BOTH, evaluate=lambda model: {"strategies": 2.0}).run(store, progress=False)
        assert set(frame["strategies"]) == {2.0}


class TestAgain:
    def test_the_decomposition_and_what_comes_before_are_made_once(self, store, monkeypatch):
        calls, evaluated = [], []
        decompose = td.decompose
        monkeypatch.setattr(td.study.measure, "decompose", lambda *a, **k: calls.append(a) or decompose(*a, **k))
        counted = study(**SMALL, finetune=BOTH, evaluate=lambda model: evaluated.append(1) or evaluate(model))
        counted.run(store, progress=False)
        assert len(calls) == 4
        assert len(evaluated) == 1 + 4 * (1 + 2 * 2)  # the baseline; a decomposition, and two runs of two strategies

    def test_one_more_is_measured_alone(self, store):
        calls = []

        def counted(model, seed):
            calls.append(seed)
            return finetune(model, seed)

        first = study(**SMALL, finetune={"first": counted}).run(store, progress=False)
        assert len(calls) == 8
        both = study(**SMALL, finetune={"first": counted, "second": further}).run(store, progress=False)
        assert len(calls) == 8
        pd.testing.assert_frame_equal(numbers(both)[list(numbers(first))], numbers(first))
        assert len(both) == 8
        assert not both.isna().any().any()

    def test_goes_on_after_ctrl_c(self, finished, store):
        calls = []

        def interrupted(model, seed):
            calls.append(seed)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return further(model, seed)

        with pytest.raises(KeyboardInterrupt, match="stopped; 5 results"):
            study(**SMALL, finetune={**BOTH, "two steps": interrupted}).run(store, progress=False)
        whole = study(**SMALL, finetune=BOTH)
        assert whole.frame(store)["finetuned[two steps]_norm"].isna().sum() == 1
        pd.testing.assert_frame_equal(numbers(whole.run(store, progress=False)), numbers(finished[1]))

    def test_in_other_processes(self, finished, store, pool):
        frame = study(**SMALL, finetune=BOTH).run(store, pool, progress=False)
        pd.testing.assert_frame_equal(numbers(frame), numbers(finished[1]))

    def test_a_store_from_before_goes_on(self, finished, store):
        before = study(**SMALL, finetune=finetune).run(store, progress=False)
        connection = sqlite3.connect(store, isolation_level=None)
        connection.execute("drop table parts")
        connection.close()
        pd.testing.assert_frame_equal(read(store), before)
        frame = study(**SMALL, finetune=BOTH).run(store, progress=False)
        pd.testing.assert_frame_equal(numbers(frame), numbers(finished[1]))
        pd.testing.assert_frame_equal(study(**SMALL, finetune=finetune).frame(store), before)


class Versioned:
    def __init__(self, version):
        self.version = version

    def __call__(self, model, seed):
        return finetune(model, seed)


class TestIdentity:
    @staticmethod
    def keys(**finetune):
        trials = study(**SMALL, finetune=finetune).trials()
        return {name: [trial.key for trial in trials if trial.strategy == name] for name in finetune}

    def test_a_name_and_a_version_tell_a_strategy_apart(self):
        first, second = self.keys(a=finetune, b=Versioned("1")), self.keys(a=finetune, b=Versioned("2"))
        assert first["a"] == second["a"]
        assert not set(first["b"]) & {*second["a"], *second["b"], *first["a"]}

    def test_a_version_counts_for_a_single_function_as_well(self):
        plain, other = (
            {trial.key for trial in study(**SMALL, finetune=one).trials()} for one in (finetune, Versioned("1"))
        )
        assert len(plain) == len(other) == 8
        assert not plain & other

    def test_results_of_two_versions_are_two_rows(self, store):
        one = {**SMALL, "methods": ["tt"], "layers": "0", "runs": 1}
        for version in "12":
            study(**one, finetune={"a": Versioned(version)}).run(store, progress=False)
        assert len(read(store)) == 2
        assert len(study(**one, finetune={"a": Versioned("2")}).frame(store)) == 1


class TestFailures:
    @pytest.fixture
    def broken(self, store):
        whole = study(**SMALL, finetune={"broken": raising, "fine": finetune})
        with pytest.warns(UserWarning, match=r"8 trials failed, the first of them 0 tucker 50% run 0 broken: ZeroDiv"):
            return whole, whole.run(store, progress=False), store

    def test_leave_the_others_of_the_row(self, broken):
        whole, frame, store = broken
        assert len(frame) == 8
        assert frame["finetuned[fine]_norm"].notna().all()
        assert "finetuned[broken]_norm" not in frame
        failures = whole.failures(store)
        assert set(failures["strategy"]) == {"broken"}
        assert len(failures) == 8

    def test_do_not_count_for_tau(self, broken):
        _, frame, _ = broken
        frame.loc[0, "finetuned[fine]_norm"] = float("nan")
        rows = taus(frame, ["finetuned[fine]_norm"], ["relative_weights"])
        found = {row.grouping.name: row.correlation for row in rows}
        ask = partial(correlate, error="relative_weights", performance="finetuned[fine]_norm")
        assert found["all"] == ask(frame.loc[1:], across=("layer", "method", "ratio"))
        # Without it there is nothing to compare the other layer of this method and run with.
        whole = frame[(frame["method"] != "tucker") | (frame["run"] != 0)]
        assert found["layers"] == ask(whole, across="layer")


class TestNames:
    def test_performances_by_their_state(self):
        columns = ["test_error", "finetuned[a_test]_test_error", "finetuned_error", "finetuned[b]_error"]
        assert performances_of(pd.DataFrame(columns=columns), "test_error") == {
            "before fine-tuning": "test_error",
            "after a_test": "finetuned[a_test]_test_error",
        }

    @pytest.mark.parametrize(
        ("finetune", "message"),
        [
            ({}, "finetune names no strategy"),
            ({"a[b": finetune}, r"without brackets, found 'a\[b'"),
            ({"": finetune}, "found ''"),
            ({3: finetune}, "found 3"),
            ({"a": 3}, "or a dict of such by name"),
        ],
    )
    def test_what_is_refused(self, finetune, message):
        with pytest.raises(CompressionError, match=message):
            study(finetune=finetune)

    def test_an_evaluation_must_not_use_them(self, store):
        with pytest.raises(CompressionError, match="which is a column of another meaning"):
            study(evaluate=lambda model: {"finetuned[a]_norm": 1.0}).run(store, progress=False)
