import io
import json
import pickle
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import tdcompress as td
from examples.paper import __main__ as command
from examples.paper import work
from examples.paper.data import Split, Splits, digits
from examples.paper.models import DigitsNet, GaripovNet, resnet18
from examples.paper.presets import PRESETS
from examples.paper.train import SETTINGS, load_checkpoint
from examples.paper.training import evaluate, train
from examples.paper.work import Calibration, Evaluation, FineTuning, Source, some
from tdcompress.metrics import METRICS
from tdcompress.study import plots

ERRORS = tuple(METRICS)

TINY = ["digits", "--layers", "conv[34]", "--methods", "cp", "tucker", "--ratios", "0.5", "0.9", "--runs", "2"]
TINY += ["--finetune-epochs", "1", "--images", "50", "--quiet"]


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The folder of a small study that ran to its end, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("study") / "finished", io.StringIO()
    with redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "DPI", 60)
        assert command.main([*TINY, "--output", str(folder)]) == 0
    return folder, printed.getvalue()


@pytest.fixture(scope="module")
def finished(reported):
    return reported[0]


@pytest.fixture(scope="module")
def splits():
    return digits()


@pytest.fixture(scope="module")
def model(finished):
    model = DigitsNet()
    load_checkpoint(model, finished / "model.safetensors")
    return model.eval()


@pytest.fixture
def folder(finished, tmp_path):
    """A new folder with the trained network, so that a study there begins with its trials."""
    shutil.copy(finished / "model.safetensors", tmp_path)
    return tmp_path


def only(split):
    """A data set of which every part is this one."""
    channels = split.images.shape[1]
    return Splits("few", split, split, split, torch.zeros(channels), torch.ones(channels))


def short_training(preset):
    return replace(preset, training=replace(preset.training, epochs=1))


def table(folder):
    return pd.read_csv(folder / "results.csv")


def numbers(frame):
    """The table without how long it took."""
    return frame[[name for name in frame if "seconds" not in name]]


class TestCommand:
    def test_the_table_has_a_row_a_trial(self, finished):
        frame = table(finished)
        assert len(frame) == 2 * 2 * 2 * 2
        assert not frame.duplicated(["layer", "method", "ratio", "run"]).any()
        assert not frame.isna().any().any()
        assert set(ERRORS) < set(frame)
        parts = [f"{part}_{name}" for part in ("validation", "test") for name in ("error", "cross_entropy")]
        assert {*parts, *(f"finetuned_{part}" for part in parts)} < set(frame)
        assert (frame["kept"] <= 1 - frame["ratio"]).all()

    def test_only_what_draws_random_numbers_differs_between_runs(self, finished):
        fixed = [*ERRORS, "test_error", "test_cross_entropy", "sweeps", "decompose_seconds", "evaluate_seconds"]
        for (_, method, _), part in table(finished).groupby(["layer", "method", "ratio"]):
            if method == "tucker":
                assert (part[fixed].nunique() == 1).all()
            else:
                assert (part[["relative_weights", "relative_features", "decompose_seconds"]].nunique() == 2).all()
            assert part["finetuned_test_cross_entropy"].nunique() == 2

    def test_it_reports(self, reported):
        finished, printed = reported
        assert "2 layers × 2 methods × 2 levels × 2 runs = 16 trials" in printed
        assert "12 distinct decompositions, 16 fine-tunings" in printed
        assert "Baseline: 0.9" in printed
        assert "after fine-tuning, mean ± std over 2 runs" in printed
        assert "the paper's GaripovNet, F-MNIST" in printed
        assert "Before fine-tuning, over all layers, methods and levels of 50–90 %" in printed
        for name in ("results.csv", "settings.json", "tau.md", "figure1_by_level.png", "figure5_regret.png"):
            assert (finished / name).exists()

    @pytest.mark.usefixtures("briefly")
    def test_a_finished_study_is_not_measured_again(self, finished, monkeypatch):
        before = (finished / "results.csv").read_bytes()
        monkeypatch.setattr(work, "train", None)
        assert command.main([*TINY, "--output", str(finished)]) == 0
        assert (finished / "results.csv").read_bytes() == before

    @pytest.mark.usefixtures("briefly")
    @pytest.mark.full  # a quick run has tests/study/test_run.py
    def test_an_interrupted_study_goes_on_and_ends_alike(self, finished, folder, monkeypatch, capsys):
        calls = []

        def interrupted(*arguments):
            calls.append(arguments)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return train(*arguments)

        part = [*TINY, "--methods", "tucker"]
        with monkeypatch.context() as patch:
            patch.setattr(work, "train", interrupted)
            assert command.main([*part, "--output", str(folder)]) == 130
        assert "the same command goes on from here" in capsys.readouterr().err
        assert len(calls) == 3
        assert command.main([*part, "--output", str(folder)]) == 0
        expected = table(finished).query("method == 'tucker'").reset_index(drop=True)
        pd.testing.assert_frame_equal(numbers(table(folder)), numbers(expected))

    @pytest.mark.full  # a quick run has tests/study/test_executors.py
    @pytest.mark.usefixtures("briefly")
    def test_two_processes_end_alike(self, finished, folder):
        assert command.main([*TINY, "--output", str(folder), "--workers", "2"]) == 0
        pd.testing.assert_frame_equal(numbers(table(folder)), numbers(table(finished)))
        assert json.loads((folder / "settings.json").read_text())["environment"]["workers"] == 2

    @pytest.mark.usefixtures("briefly")
    @pytest.mark.full  # a quick run has tests/study/test_run.py
    def test_a_larger_grid_adds_what_is_new(self, finished, folder, monkeypatch):
        shutil.copy(finished / "study.sqlite", folder)
        calls = []
        monkeypatch.setattr(work, "train", lambda *arguments: calls.append(arguments) or train(*arguments))
        assert command.main([*TINY, "--ratios", "0.5", "0.8", "0.9", "--output", str(folder)]) == 0
        assert len(calls) == 8
        assert len(table(folder)) == 24

    @pytest.mark.usefixtures("briefly")
    @pytest.mark.full
    def test_other_settings_are_other_trials(self, finished, folder):
        shutil.copy(finished / "study.sqlite", folder)
        options = [word for word in TINY if word not in ("--finetune-epochs", "1")]
        assert command.main([*options, "--no-finetune", "--output", str(folder)]) == 0
        assert not any("finetuned" in name for name in table(folder))
        assert command.main([*TINY, "--output", str(folder)]) == 0
        pd.testing.assert_frame_equal(table(folder), table(finished))

    @pytest.mark.usefixtures("briefly")
    def test_fresh_starts_over(self, folder, monkeypatch):
        quick = ["digits", "--layers", "conv4", "--methods", "tt", "--runs", "1", "--no-finetune", "--quiet"]
        quick += ["--output", str(folder)]
        for name in ("results.csv", "notes.txt"):
            (folder / name).write_text("someone else's\n")
        (folder / "study.sqlite").write_text("no database")
        assert command.main([*quick, "--ratios", "0.5", "0.9"]) == 2
        monkeypatch.setattr(command, "PRESETS", {"digits": short_training(PRESETS["digits"])})
        assert command.main([*quick, "--ratios", "0.5", "0.9", "--fresh"]) == 0
        assert len(table(folder)) == 2
        assert (folder / "notes.txt").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--layers", "conv9"], "no layer 'conv9'; did you mean"),
            (["--methods", "tuckre"], "unknown method 'tuckre'"),
            (["--ratios", "90"], "between 0 and 1; found 90.0"),
            (["--runs", "0"], "runs must be a whole number from 1, found 0"),
            (["--images", "-3"], "images must be at least 1, found -3"),
            (["--device", "abacus"], "cannot use the device 'abacus'"),
            (["--ranks", "paper"], "no rank of GaripovNet for layer 'conv1'"),
        ],
    )
    def test_what_cannot_be_done_is_said_in_one_line(self, folder, capsys, options, message):
        chosen = {"--layers": ["conv1"], "--ratios": ["0.5"]}
        arguments = [word for name, words in chosen.items() if name not in options for word in (name, *words)]
        assert command.main(["digits", "--quiet", "--output", str(folder), *arguments, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1

    def test_a_study_without_a_recipe_cannot_be_told_for_how_long_to_fine_tune(self, tmp_path, capsys):
        assert command.main(["digits-resnet", "--finetune-epochs", "3", "--output", str(tmp_path / "new")]) == 2
        assert "digits-resnet has no recipe of fine-tuning" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()

    def test_missing_data_is_said_in_one_line(self, tmp_path, capsys):
        arguments = ["garipov-fmnist", "--quiet", "--data", str(tmp_path / "nowhere"), "--output", str(tmp_path)]
        assert command.main(arguments) == 2
        assert "nowhere" in capsys.readouterr().err

    def test_a_study_that_never_began_leaves_nothing_behind(self, tmp_path):
        wrong = ["garipov-fmnist", "--data", str(tmp_path / "nowhere"), "--output", str(tmp_path)]
        assert command.main(wrong) == 2
        assert not list(tmp_path.iterdir())

    @pytest.mark.usefixtures("briefly")
    def test_the_number_of_threads_is_put_back(self, finished):
        before = torch.get_num_threads()
        command.main([*TINY, "--output", str(finished), "--threads", str(before + 1)])
        assert torch.get_num_threads() == before


def whole(preset, network, splits, monkeypatch):
    """A preset's study on other data."""
    monkeypatch.setattr(work, "_splits", lambda source: splits)
    return preset.study(network.eval(), Source(preset.setting))


class TestPresets:
    def test_the_paper_s_grid(self, monkeypatch):
        few = Split(torch.randn(4, 1, 28, 28), torch.arange(4))
        study = whole(PRESETS["garipov-fmnist"], GaripovNet(1), only(few), monkeypatch)
        every = study.trials()
        assert len(every) == len({trial.key for trial in every}) == 5 * 3 * 5 * 5
        assert len({trial.decomposition for trial in every}) == 5 * 5 * (5 + 1 + 1)
        assert [trial.layer for trial in every] == sorted(trial.layer for trial in every)
        ranks = {trial.method: trial.rank for trial in every if (trial.layer, trial.ratio) == ("conv2", 0.9)}
        assert ranks == {"cp": (28,), "tucker": (14, 14), "tt": (40, 4, 12)}

    def test_without_fine_tuning_only_cp_has_runs_that_differ(self, monkeypatch):
        few = Split(torch.randn(4, 1, 28, 28), torch.arange(4))
        preset = replace(PRESETS["garipov-fmnist"], fine_tuning=None)
        every = whole(preset, GaripovNet(1), only(few), monkeypatch).trials()
        assert len({trial.key for trial in every}) == 5 * 5 * (5 + 1 + 1)

    def test_ranks_that_belong_to_no_such_kernel_are_cut(self, monkeypatch):
        few = Split(torch.randn(4, 3, 32, 32), torch.arange(4))
        every = whole(PRESETS["resnet18-cifar10"], resnet18(3), only(few), monkeypatch).trials()
        assert len(every) == 8 * 3 * 5 * 5
        ranks = {(trial.method, trial.ratio): trial.rank for trial in every if "downsample" in trial.layer}
        assert ranks["tt", 0.9] == (33,)
        assert ranks["tt", 0.5] == (128,)  # printed as 129, of a kernel with 128 input channels
        assert ranks["tucker", 0.9] == (10, 5)

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_short_one_says_so(self, name):
        preset = PRESETS[name]
        assert preset.name == name
        assert bool(preset.short) == name.endswith(("-short", "-medium", "-strategies"))
        if not preset.short and (preset.published is None or not preset.published.same_network):
            assert preset.ranks == "ours"
        elif not preset.short:
            parts = SETTINGS[preset.setting]
            assert (preset.ranks, preset.runs, preset.evaluated) == ("paper", 5, None)
            assert (preset.training, preset.fine_tuning) == (parts.recipe, parts.fine_tuning)

    def test_the_medium_one_is_the_paper_s_but_for_levels_runs_epochs_and_precision(self):
        medium, whole = PRESETS["garipov-fmnist-medium"], PRESETS["garipov-fmnist"]
        assert medium.fine_tuning is not None
        recipe = replace(medium.fine_tuning, epochs=10, autocast=False, channels_last=False)
        assert recipe == whole.fine_tuning
        again: dict[str, Any] = {
            "name": whole.name,
            "ratios": whole.ratios,
            "runs": 5,
            "fine_tuning": recipe,
            "short": "",
        }
        assert replace(medium, **again) == whole

    @pytest.mark.parametrize("name", ["garipov-fmnist-medium", "resnet50-fmnist", "digits"])
    def test_a_cpu_that_is_slow_in_bfloat16_is_spared_it(self, name, monkeypatch):
        preset = PRESETS[name]
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        assert preset.on("cpu") == preset
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        assert preset.on("cuda") == preset
        spared = preset.on("cpu")
        recipes = [recipe for recipe in (spared.training, spared.fine_tuning) if recipe is not None]
        assert not any([spared.autocast, *(recipe.autocast for recipe in recipes)])
        assert "bfloat16" not in spared.short
        kept = {name: getattr(preset, name) for name in ("training", "fine_tuning", "autocast", "short")}
        assert replace(spared, **kept) == preset

    @pytest.mark.full
    @pytest.mark.parametrize("name", ["garipov-fmnist-medium", "garipov-fmnist-strategies"])
    def test_those_of_hours_run_on_few_images(self, name, tmp_path, monkeypatch):
        few = Split(torch.randn(20, 1, 28, 28), torch.arange(20) % 10)
        monkeypatch.setattr(Source, "splits", lambda self: only(few))
        preset = PRESETS[name]
        assert preset.fine_tuning is not None
        recipe = replace(preset.fine_tuning, epochs=1)
        small = replace(preset, layers=("conv5", "conv6"), methods=("tt",), ratios=(0.9,), fine_tuning=recipe)
        monkeypatch.setattr(command, "PRESETS", {name: small})
        assert command.main([name, "--quiet", "--output", str(tmp_path)]) == 0
        frame = table(tmp_path)
        assert frame["layer"].tolist() == ["conv5", "conv6"]
        tuned = [column for column in frame if column.startswith("finetuned") and column.endswith("_test_error")]
        assert len(tuned) == max(1, len(preset.strategies))
        assert (tmp_path / "tau.md").read_text().startswith(f"{preset.on('cpu').short}\n")

    def test_ranks_that_nobody_printed_are_not_the_paper_s(self):
        with pytest.raises(td.CompressionError, match="the paper printed no ranks for gpt-text"):
            replace(PRESETS["gpt-text"], ranks="paper")

    def test_a_study_begins_cp_at_random_in_each_run_or_where_the_library_does(self):
        assert PRESETS["digits"].solver_of("cp") == td.CPOptions(starts=("random",), spatial="separable")
        assert PRESETS["digits-resnet"].solver_of("cp") == td.CPOptions(spatial="separable")
        assert PRESETS["digits-resnet"].solver_of("tucker") is None

    @pytest.mark.parametrize("name", ["resnet18-fmnist", "resnet50-fmnist"])
    def test_all_convolutions_of_a_network_are_in_its_study(self, name):
        preset = PRESETS[name]
        model = preset.parts.build()
        convolutions = [layer for layer, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        assert list(preset.layer_names()) == convolutions

    @pytest.mark.full
    def test_the_default_has_its_weights_and_shows_the_errors_in_a_deep_network(self, tmp_path, monkeypatch):
        """The command's default, with fewer levels."""
        small = replace(PRESETS["digits-resnet"], ratios=(0.9,), methods=("cp", "svd"))
        monkeypatch.setattr(command, "PRESETS", {"digits-resnet": small})
        assert command.main(["--quiet", "--output", str(tmp_path)]) == 0
        frame = table(tmp_path)
        assert len(frame) == 18 * 2
        assert (frame["kept"] <= 0.1).all()
        assert not (tmp_path / "model.safetensors").exists()  # nothing was trained
        assert "τ" in (tmp_path / "tau.md").read_text(encoding="utf-8")

    def test_the_committed_network_classifies_digits(self, splits):
        preset = PRESETS["digits-resnet"]
        model = preset.parts.build()
        assert preset.checkpoint is not None
        notes = load_checkpoint(model, preset.checkpoint)
        found = evaluate(model, splits.test.images, splits.test.labels)
        assert found.accuracy == pytest.approx(float(notes["test_accuracy"]), abs=0.002)
        assert found.accuracy >= 0.98

    def test_evaluating_on_the_test_part_alone_or_in_bfloat16_makes_other_trials(self, splits, monkeypatch):
        preset = replace(PRESETS["digits"], layers=("conv3",), fine_tuning=None, runs=1)
        changes: list[dict[str, Any]] = [{}, {"validated": False}, {"validated": False, "autocast": True}]
        presets = [replace(preset, **change) for change in changes]
        both, alone, rounded = (whole(one, DigitsNet(), splits, monkeypatch) for one in presets)
        exact, found = (study.evaluate(study.model) for study in (alone, rounded))
        assert set(exact) == set(found) == {"test_error", "test_cross_entropy"}
        assert 0 < abs(found["test_cross_entropy"] / exact["test_cross_entropy"] - 1) < 0.05
        keys = [{trial.key for trial in study.trials()} for study in (both, alone, rounded)]
        assert len(set.union(*keys)) == sum(map(len, keys))
        assert [one.choices().get("autocast") for one in presets] == [None, None, True]

    @pytest.mark.full
    def test_the_precision_of_evaluations_is_chosen_and_said(self, folder, capsys):
        options = ["digits", "--layers", "conv4", "--methods", "svd", "--ratios", "0.5", "0.9", "--runs", "1"]
        options += ["--images", "50", "--no-finetune", "--quiet", "--precision", "bfloat16", "--output", str(folder)]
        assert command.main(options) == 0
        assert "without fine-tuning, evaluated in bfloat16" in capsys.readouterr().out
        assert json.loads((folder / "settings.json").read_text())["choices"]["autocast"]

    @pytest.mark.full  # a quick run has tests/study/test_run.py
    def test_calibrated_networks_are_measured_too(self, folder, capsys):
        options = ["digits", "--layers", "conv[34]", "--methods", "tucker", "--ratios", "0.5", "0.9", "--runs", "1"]
        options += ["--images", "50", "--no-finetune", "--calibrate", "100", "--quiet"]
        assert command.main([*options, "--output", str(folder)]) == 0
        assert "each calibrated on 100 images, without fine-tuning" in capsys.readouterr().out
        frame = table(folder)
        assert {"calibrated_test_error", "calibrated_validation_cross_entropy"} < set(frame)
        assert "rise from before fine-tuning to after calibration" in (folder / "states.md").read_text()
        assert json.loads((folder / "settings.json").read_text())["choices"]["calibrated"] == 100


class TestEvaluation:
    """What is computed from the layer on equals a plain evaluation of the whole."""

    @pytest.mark.parametrize("layer", ["conv2", "conv4"])
    @pytest.mark.parametrize(("method", "ratio"), [("cp", 0.75), ("tucker", 0.9), ("tt", 0.3)])
    def test_equals_a_plain_evaluation_of_the_whole(self, model, splits, layer, method, ratio):
        evaluation = Evaluation(model, Source("digits"))
        for small in (model, td.decompose(model, layer, method, ratio)):
            found = evaluation(small)
            for part, split in (("validation", splits.validation), ("test", splits.test)):
                plain = evaluate(small, split.images, split.labels)
                assert found[f"{part}_error"] == plain.error
                assert found[f"{part}_cross_entropy"] == pytest.approx(plain.cross_entropy, rel=1e-4)

    def test_can_be_sent_with_the_network_once_and_without_its_caches(self, model):
        evaluation = Evaluation(model, Source("digits"))
        size = len(pickle.dumps((model, evaluation)))
        evaluation(model)
        assert len(pickle.dumps((model, evaluation))) == size < 1.2 * len(pickle.dumps(model))

    def test_calibration_is_the_library_s_on_random_training_images(self, model, splits):
        calibration = Calibration(model, Source("digits"), count=150, seed=3)
        small = td.decompose(model, "conv3", "tt", 0.8)
        images = some(splits.train, 150, seed=3).images
        expected = td.calibrate(small, list(images.split(100)), model).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in calibration(small).state_dict().items())

    @pytest.mark.full
    def test_fine_tuning_depends_on_the_seed_alone(self, model, splits):
        recipe = PRESETS["digits"].fine_tuning
        assert recipe is not None
        tuning = FineTuning(recipe, Source("digits"))
        first, second, other = (
            tuning(td.decompose(model, "conv3", "tucker", 0.5), seed).state_dict() for seed in (1, 1, 2)
        )
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        assert not all(torch.equal(value, other[name]) for name, value in first.items())


class TestSome:
    def test_a_seeded_draw_without_replacement(self, splits):
        drawn = some(splits.train, 100, seed=1)
        assert drawn.images.shape == (100, 1, 8, 8)
        assert torch.equal(drawn.images, some(splits.train, 100, seed=1).images)
        assert not torch.equal(drawn.images, some(splits.train, 100, seed=2).images)
        assert len(drawn.images.flatten(1).unique(dim=0)) == 100

    def test_all_of_them(self, splits):
        assert some(splits.train, None, seed=1) is splits.train
        assert some(splits.train, 600, seed=1) is splits.train

    def test_fewer_images_are_evaluated(self):
        few = Source("digits", evaluated=50).splits()
        assert (len(few.train), len(few.validation), len(few.test)) == (599, 50, 50)
