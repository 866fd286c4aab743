import concurrent.futures
import warnings

import pandas as pd
import pytest
import torch

import tdcompress as td
from tdcompress.errors import CompressionError
from tdcompress.study import Study, driver, export, processes, read
from tests.study.functions import calibrate, evaluate, failing, finetune, images, network, slowly, study

RANDOM = {"cp": td.CPOptions(starts=("random",), max_iter=20), "tucker": None}


def numbers(frame):
    """The table without how long it took."""
    return frame[[name for name in frame if "seconds" not in name]]


def same(first, second):
    pd.testing.assert_frame_equal(numbers(first), numbers(second))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "study.sqlite"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = study(finetune=finetune, methods=RANDOM)
    frame = whole.run(path, progress=False)
    torch.set_num_threads(threads)
    return whole, path, frame


class TestTable:
    def test_a_row_a_trial_in_the_order_of_the_grid(self, finished):
        whole, _, frame = finished
        trials = [[trial.layer, trial.method, trial.ratio, trial.run] for trial in whole.trials()]
        assert frame[["layer", "method", "ratio", "run"]].to_numpy().tolist() == trials
        assert not frame.isna().any().any()
        assert {"rank", "kept", "sweeps", "mean", "norm", "finetuned_mean", "seconds"} < set(frame)

    def test_equals_what_the_library_says_of_each(self, finished):
        whole, _, frame = finished
        for row in frame.to_dict("records")[::3]:
            model = td.decompose(
                whole.model, row["layer"], row["method"], row["ratio"], solver=RANDOM[row["method"]], seed=row["run"]
            )
            errors = td.approximation_errors(whole.model, model, data=whole.data)[row["layer"]]
            assert {name: row[name] for name in errors} == pytest.approx(errors, rel=1e-5)
            with torch.no_grad():
                assert {name: row[name] for name in ("mean", "norm")} == pytest.approx(evaluate(model), rel=1e-5)
            tuned = finetune(model, row["run"])
            with torch.no_grad():
                assert row["finetuned_norm"] == pytest.approx(evaluate(tuned)["norm"], rel=1e-4)

    def test_a_seed_of_its_own(self, store):
        shifted = study(methods=RANDOM, seed=1, runs=1).run(store, progress=False)
        both = study(methods=RANDOM, runs=2).run(store, progress=False)
        second = both[both["run"] == 1].reset_index(drop=True)
        pd.testing.assert_frame_equal(numbers(second).drop(columns="run"), numbers(shifted).drop(columns="run"))

    def test_ranks_by_function_and_by_rule(self, store):
        given = study(ranks=lambda layer, method, ratio: {"cp": 3, "tucker": (2, 3)}.get(method), runs=1)
        frame = given.run(store, progress=False)
        assert set(frame[frame["method"] == "cp"]["rank"]) == {"3"}
        assert set(frame[frame["method"] == "tucker"]["rank"]) == {"2x3"}
        ruled = study(ranks="tensorly-torch", methods=["tucker"], layers="3", ratios=[0.5], runs=1)
        expected = td.TuckerConv.from_conv(network()[3], ratio=0.5, rank="tensorly-torch").ranks
        assert ruled.run(store, progress=False)["rank"].tolist() == ["x".join(map(str, expected))]

    def test_without_data_only_weights_are_measured(self, store):
        frame = study(data=None).run(store, progress=False)
        assert "relative_weights" in frame
        assert "relative_features" not in frame

    def test_the_model_is_left_alone(self, store):
        model = network().train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        study(model=model, finetune=finetune, layers="3", runs=1).run(store, progress=False)
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not model[3]._forward_hooks

    def test_what_evaluate_does_to_the_model_reaches_no_other_trial(self, store):
        def spoil(model):
            found = evaluate(model)
            if len(list(model.modules())) > 7:
                for parameter in model.parameters():
                    parameter.zero_()
            return found

        whole = {"finetune": finetune, "layers": "3", "methods": ["tucker"], "runs": 2}
        spoilt = study(**whole, evaluate=spoil, version="spoilt").run(store, progress=False)
        same(spoilt, study(**whole).run(store, progress=False))

    def test_a_model_that_is_itself_a_convolution(self, store):
        conv = torch.nn.Conv2d(3, 8, 3)
        frame = Study(conv, "", ["tt"], [0.5], 1, evaluate, finetune, images()).run(store, progress=False)
        assert len(frame) == 1


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """The table of the finished study, with calibration as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = study(methods=RANDOM, finetune=finetune, calibrate=calibrate)
    frame = whole.run(tmp_path_factory.mktemp("calibrated") / "study.sqlite", progress=False)
    torch.set_num_threads(threads)
    return frame


class TestCalibration:
    def test_equals_what_the_library_says(self, calibrated):
        for row in calibrated.to_dict("records")[::3]:
            small = td.decompose(
                network(), row["layer"], row["method"], row["ratio"], solver=RANDOM[row["method"]], seed=row["run"]
            )
            with torch.no_grad():
                assert row["norm"] == pytest.approx(evaluate(small)["norm"], rel=1e-5)
                assert row["calibrated_norm"] == pytest.approx(evaluate(calibrate(small))["norm"], rel=1e-4)
        assert (calibrated["calibrated_norm"] != calibrated["norm"]).all()

    def test_what_else_is_measured_stays_as_it_is(self, calibrated, finished):
        there = numbers(finished[2])
        pd.testing.assert_frame_equal(numbers(calibrated)[list(there)], there)
        added = set(calibrated) - set(finished[2])
        assert added == {"calibrated_mean", "calibrated_norm", "calibrate_seconds", "calibrated_evaluate_seconds"}

    def test_runs_that_cannot_differ_are_calibrated_once(self, store):
        calls = []

        def counted(model):
            calls.append(model)
            return calibrate(model)

        whole = study(methods=["tucker"], layers="3", finetune=finetune, runs=3, calibrate=counted)
        frame = whole.run(store, progress=False)
        assert len(calls) == 2
        assert frame.groupby("ratio")["calibrated_norm"].nunique().tolist() == [1, 1]

    def test_trials_with_it_and_without_are_different_ones(self, store):
        plain, more = (study(methods=["tt"], **options) for options in ({}, {"calibrate": calibrate}))
        frame = plain.run(store, progress=False)
        assert "calibrated_norm" in more.run(store, progress=False)
        pd.testing.assert_frame_equal(plain.run(store, progress=False), frame)

    def test_it_must_return_the_model(self, store):
        with pytest.warns(UserWarning, match="calibrate must return the model, and returned a NoneType"):
            study(calibrate=lambda model: None, layers="3").run(store, progress=False)


class TestAgain:
    def test_nothing_is_measured_twice(self, finished):
        _, path, frame = finished
        calls = []

        def never(model):
            calls.append(model)
            return evaluate(model)

        again = study(finetune=finetune, methods=RANDOM, evaluate=never).run(path, progress=False)
        pd.testing.assert_frame_equal(again, frame)
        assert not calls

    def test_a_larger_grid_measures_what_is_new(self, store):
        calls = []

        def counted(model):
            calls.append(model)
            return evaluate(model)

        small = study(methods=["tucker"], ratios=(0.3,), evaluate=counted).run(store, progress=False)
        assert len(calls) == 1 + 2  # the baseline, and a layer each: the runs cannot differ
        grown = study(methods=["tucker", "tt"], ratios=(0.3, 0.6), runs=3, evaluate=counted).run(store, progress=False)
        assert len(calls) == 3 + 2 * 3
        assert len(grown) == 2 * 2 * 2 * 3
        there = grown.merge(small, on=["layer", "method", "ratio", "run"], suffixes=("", "_before"))
        assert (there["seconds"] == there["seconds_before"]).all()

    def test_a_deterministic_method_is_decomposed_once(self, store, monkeypatch):
        calls = []
        decompose = td.decompose
        monkeypatch.setattr(td.study.measure, "decompose", lambda *a, **k: calls.append(a) or decompose(*a, **k))
        frame = study(methods=RANDOM, finetune=finetune, runs=3, layers="3", ratios=(0.5,)).run(store, progress=False)
        assert [call[2] for call in calls] == ["cp", "cp", "cp", "tucker"]
        assert frame[frame["method"] == "tucker"]["finetuned_norm"].nunique() == 3
        assert frame[frame["method"] == "tucker"]["norm"].nunique() == 1

    def test_one_of_the_runs_alone_gives_the_same(self, finished, store):
        """Whether a decomposition was shared or made anew cannot be seen in the numbers."""
        _, _, frame = finished
        alone = study(finetune=finetune, methods=["tucker"], runs=1, seed=1).run(store, progress=False)
        there = frame[(frame["method"] == "tucker") & (frame["run"] == 1)].reset_index(drop=True)
        pd.testing.assert_frame_equal(numbers(there).drop(columns="run"), numbers(alone).drop(columns="run"))

    def test_the_table_can_be_read_without_running(self, finished):
        whole, path, frame = finished
        pd.testing.assert_frame_equal(whole.frame(path), frame)
        by_key = ["layer", "method", "ratio", "run"]
        pd.testing.assert_frame_equal(read(path).sort_values(by_key), frame.sort_values(by_key))
        assert whole.baseline(path) == pytest.approx(evaluate(network()), rel=1e-6)
        assert whole.failures(path).empty

    def test_ctrl_c_says_how_to_go_on(self, finished, store):
        whole, _, frame = finished
        calls = []

        def interrupted(model):
            calls.append(model)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return evaluate(model)

        options = {"finetune": finetune, "methods": RANDOM}
        with pytest.raises(KeyboardInterrupt, match=r"stopped; 2 results are in .*study\.sqlite, and the same call"):
            study(**options, evaluate=interrupted).run(store, progress=False)
        assert len(whole.frame(store)) == 2
        same(whole.run(store, progress=False), frame)

    def test_ctrl_c_in_the_driver_stops_the_workers(self, store, monkeypatch):
        wait = concurrent.futures.wait
        calls = []

        def interrupted(*arguments, **options):
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return wait(*arguments, **options)

        monkeypatch.setattr(driver, "wait", interrupted)
        with processes(1) as executor, pytest.raises(KeyboardInterrupt, match="the same call goes on"):
            slowly(0.05).run(store, executor, progress=False)
        assert not executor._processes or not any(worker.is_alive() for worker in executor._processes.values())


class TestFailures:
    def test_are_kept_and_stop_nothing(self, store):
        broken = study(evaluate=lambda model: failing(model, "3"), methods=["cp", "tt"])
        with pytest.warns(UserWarning, match=r"8 trials failed, the first of them 3 cp 30% run 0: ZeroDivisionError"):
            frame = broken.run(store, progress=False)
        assert set(frame["layer"]) == {"0"}
        failures = broken.failures(store)
        assert set(failures["layer"]) == {"3"}
        assert failures["traceback"].str.contains("ZeroDivisionError: not with 3").all()

    def test_are_tried_again_only_when_told(self, store):
        with pytest.warns(UserWarning, match="trials failed"):
            study(evaluate=lambda model: failing(model, "3")).run(store, progress=False)
        with pytest.warns(UserWarning, match="trials failed"):
            assert len(study().run(store, progress=False)) == 12
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(study().run(store, progress=False, retry_failed=True)) == 24

    @pytest.mark.parametrize(
        ("returned", "message"),
        [
            ({"norm": float("nan")}, r"returned norm=nan"),
            ({"norm": float("inf")}, r"returned norm=inf"),
            ({"norm": "high"}, r"returned norm='high'"),
            ([1.0], r"must return a dict of numbers by name, and returned \[1\.0\]"),
            ({}, r"must return a dict"),
            (None, r"returned None"),
            ({"layer": 1.0}, "'layer', which is a column of another meaning"),
            ({"relative_weights": 1.0}, "'relative_weights', which is a column"),
            ({"finetuned_norm": 1.0}, "'finetuned_norm', which is a column"),
            ({"calibrated_norm": 1.0}, "'calibrated_norm', which is a column"),
        ],
    )
    def test_an_evaluation_that_is_none_is_refused_before_the_first_trial(self, store, returned, message):
        with pytest.raises(CompressionError, match=message):
            study(evaluate=lambda model: returned).run(store, progress=False)
        assert read(store).empty

    def test_an_evaluation_that_raises_is_refused_before_the_first_trial(self, store):
        def broken(model):
            raise KeyError("accuracy")

        with pytest.raises(CompressionError, match=r"evaluate fails for the model as it is.*KeyError\('accuracy'\)"):
            study(evaluate=broken).run(store, progress=False)

    def test_nan_after_compression_fails_that_trial(self, store):
        def unstable(model):
            found = evaluate(model)
            return found | {"norm": float("nan")} if hasattr(model[3], "ranks") else found

        with pytest.warns(UserWarning, match=r"12 trials failed.*finite numbers, and returned norm=nan"):
            assert len(study(evaluate=unstable).run(store, progress=False)) == 12

    def test_finetune_must_return_the_model(self, store):
        with pytest.warns(UserWarning, match="finetune must return the model, and returned a NoneType"):
            study(finetune=lambda model, seed: None, layers="3").run(store, progress=False)

    def test_a_ratio_out_of_reach_is_a_failed_trial(self, store):
        with pytest.warns(UserWarning, match=r"1 trial failed, the first of them 0 tucker 99% run 0"):
            frame = study(layers="0", methods=["tucker"], ratios=(0.5, 0.99), runs=1).run(store, progress=False)
        assert frame["ratio"].tolist() == [0.5]


class TestChecks:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"layers": "conv9"}, "no layer 'conv9'"),
            ({"methods": ["cpp"]}, "unknown method 'cpp'"),
            ({"methods": []}, "at least one method"),
            ({"ratios": ()}, "one ratio"),
            ({"ratios": (0.5, 90)}, "between 0 and 1; found 90"),
            ({"ratios": (0.5, 0.5)}, "a ratio occurs twice"),
            ({"runs": 0}, "runs must be a whole number from 1, found 0"),
            ({"metrics": ["relative_wieghts"]}, "unknown metric 'relative_wieghts'"),
            ({"metrics": ["relative_features"], "data": None}, "relative_features need inputs"),
            ({"data": iter([images()])}, "only once; pass a tensor"),
            ({"evaluate": 3}, "evaluate and calibrate must be functions"),
            ({"calibrate": 1000}, "evaluate and calibrate must be functions"),
            ({"model": "resnet18"}, "model must be an nn.Module, got a str"),
        ],
    )
    def test_a_study_that_cannot_be_is_refused_when_it_is_made(self, change, message):
        with pytest.raises(CompressionError, match=message):
            study(**change)


class TestExport:
    @pytest.mark.parametrize("name", ["results.csv", "results.csv.gz", "results.parquet"])
    def test_the_numbers_come_back(self, finished, tmp_path, name):
        _, _, frame = finished
        path = export(frame, tmp_path / name)
        text = {"layer": str, "rank": str}
        back = pd.read_parquet(path) if name.endswith("parquet") else pd.read_csv(path, dtype=text)
        pd.testing.assert_frame_equal(back, frame, check_dtype=False)
        assert [file.name for file in tmp_path.iterdir()] == [name]

    def test_another_ending_is_refused(self, finished, tmp_path):
        with pytest.raises(CompressionError, match=r"written as \.csv, \.csv\.gz or \.parquet"):
            export(finished[2], tmp_path / "results.xlsx")
